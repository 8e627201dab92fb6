"""Hundreds of parked children at the same time."""

from __future__ import annotations

from support import run_caller

MANY = 500


def test_five_hundred_wait_at_the_same_time_and_all_of_them_answer():
    said = run_caller(
        f"""
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        def available():
            with open("/proc/meminfo") as file:
                lines = dict(line.split(":") for line in file)
            return int(lines["MemAvailable"].split()[0]) / 1024

        own_children, own_descriptors = children_of_this_process(), len(open_descriptors())
        before = available()
        client.prewarm(SANDBOX, {MANY})
        each = (before - available()) / {MANY}
        # One that is as large as it looks would need twenty.
        assert each < 4, f"{{each}} MiB for each"
        there = children_of_this_process() - own_children
        assert len(there) == {MANY}
        assert len(open_descriptors()) - own_descriptors < {MANY} * 6
        children = [spawn(client, "import sys; print(number, sys.stdin.read())", number=number) for number in range({MANY})]
        woken = [child for child in children if child.pid in there]
        print(len(woken) > {MANY} * 0.9)
        client.prewarm(SANDBOX, 0)
        for number, child in enumerate(children):
            assert communicate(child, b"x").text == f"{{number}} x\\n"
        deadline = time.monotonic() + 60
        while children_of_this_process() != own_children:
            assert time.monotonic() < deadline, children_of_this_process()
            time.sleep(0.01)
        del children, woken, child
        print(len(open_descriptors()) - own_descriptors)
        """.replace("import resource\n", "import resource, time\n", 1)
    )
    # The keeper's own: what it waits with, and by what it is woken.
    assert said.split()[0] == "True"
    assert int(said.split()[1]) <= 5, said
