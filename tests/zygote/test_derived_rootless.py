"""Derived zygotes of a caller that is no root. Theirs cannot leave the user namespace that the first one has made."""

from __future__ import annotations

import json

import pytest

from ordinary_user import give
from support import visible_directory


@pytest.fixture
def directory():
    with visible_directory() as directory:
        give(directory)
        yield directory


def test_a_derived_zygote_serves_and_so_does_one_of_it(user):
    source = """
    with client.derive(preload_imports=["wave"]) as derived, derived.derive(preload_imports=["mailbox"]) as again:
        look = "import sys; print([name in sys.modules for name in ('wave', 'mailbox')])"
        print(run(again, look).text, run(derived, look).text, run(client, look).text)
    """
    assert user.run_caller(source).split("\n")[:3] == ["[True, True]", " [True, False]", " [False, False]"]


def test_a_child_of_it_sees_as_little_as_a_child_of_the_parent(user):
    source = """
    look = '''
import json, os
mounts = [line.split()[4:6] for line in open("/proc/self/mountinfo")]
status = [line for line in open("/proc/self/status") if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Groups", "Uid"))]
ids = [open(f"/proc/self/{name}").read().split() for name in ("uid_map", "gid_map", "setgroups")]
print(json.dumps([mounts, status, ids, os.listdir("/proc/self/fd"), os.listdir("/"), os.getcwd()]))
'''
    with client.derive() as derived, derived.derive() as again:
        print(run(client, look).text, run(derived, look).text, run(again, look).text)
    """
    parent, derived, again = (json.loads(line) for line in user.run_caller(source).strip().splitlines())
    assert derived == parent
    assert again == parent


def test_imports_see_the_hosts_files_as_the_user_may(user, directory):
    (directory / "rootless_reader.py").write_text(
        "import os, sys\n"
        "def attempt(path):\n"
        "    try: return open(path).read(9)\n"
        "    except OSError as error: return error.errno\n"
        "SEEN = [attempt('/etc/shadow'), len(os.listdir('/run')) > 0, os.getcwd(), open('/proc/self/comm').read()]\n"
    )
    source = """
    import sys
    with client.derive(preload_imports=["rootless_reader"]) as derived:
        print(run(derived, "import rootless_reader; print(rootless_reader.SEEN, __import__('os').listdir('/run'))").text)
    """
    seen = user.run_caller(source, prelude=f"import sys; sys.path.append({str(directory)!r})")
    assert seen.strip() == "[13, True, '/', 'pyspawner\\n'] []"


def test_mounts_of_children_are_found(user, directory):
    (directory / "file").write_text("content")
    source = f"""
    mounts = (
        pyspawner.Bind({str(directory)!r}, "/in", writable=False),
        pyspawner.Bind({str(directory)!r}, "/out", writable=True),
    )
    sandbox = pyspawner.SandboxConfig(mounts=mounts)
    with client.derive() as derived:
        print(run(derived, "open('/out/new', 'w').write(open('/in/file').read())", sandbox=sandbox).exitcode)
    """
    assert user.run_caller(source) == "0\n"
    assert (directory / "new").read_text() == "content"


def test_threads_of_its_imports_are_left_behind(user, directory):
    (directory / "thread_started_there.py").write_text(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    source = """
    with client.derive(preload_imports=["thread_started_there"]) as derived:
        print(run(derived, "import os; print(len(os.listdir('/proc/self/task')))").text)
    """
    assert user.run_caller(source, prelude=f"import sys; sys.path.append({str(directory)!r})").strip() == "1"


def test_nothing_is_left_of_it_when_an_import_fails_or_it_is_closed(user):
    source = """
    before, descriptors = children_of_this_process(), open_descriptors()
    for imports in (["no_such_module"], []):
        try:
            client.derive(preload_imports=imports).close()
        except pyspawner.ZygoteStartError as error:
            print("no_such_module" in str(error))
        print(children_of_this_process() == before, open_descriptors() == descriptors)
    """
    assert user.run_caller(source).split() == ["True"] * 5


def test_its_children_die_with_the_caller(user):
    source = """
    derived = client.derive()
    for each in (client, derived):
        print(len(spawn(each, "import threading; print('x', flush=True); threading.Event().wait()").stdout.read(1)))
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
    """
    with pytest.raises(AssertionError, match="returncode=-9"):
        user.run_caller(source)
    assert user.processes_end()


def test_many_zygotes_and_rotation_work(user):
    source = """
    import time
    from pyspawner import events
    retired = []
    def see(event):
        if isinstance(event, events.ZygoteRetired):
            retired.append(event)
    with pyspawner.Client(child_main="support.run_source", zygotes=2, max_spawns_per_zygote=2, on_event=see) as many:
        while len(retired) < 4:
            assert run(many, "print('works')").text == "works\\n"
    print(len(retired) >= 4)
    """
    assert user.run_caller(source) == "True\n"
