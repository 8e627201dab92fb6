"""A module that starts a thread, as many libraries do."""

import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
