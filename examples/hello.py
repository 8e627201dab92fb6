"""The quick start: one zygote, one child, one line of output."""

import pyspawner


def greet(name: str) -> None:
    """Be the child."""
    print(f"Hello, {name}, from a sandbox.")


if __name__ == "__main__":
    # Slow and done once: a zygote that has imported what children need. It imports this file too, as "hello".
    with pyspawner.Client(child_main="hello.greet", preload_imports=["decimal"]) as client:
        # Fast, and done for each job: a clone of the zygote in a sandbox of its own.
        child = client.spawn_child(["world"], sandbox_config=pyspawner.SandboxConfig())
        print(child.communicate(timeout=10).stdout.decode(), end="")
