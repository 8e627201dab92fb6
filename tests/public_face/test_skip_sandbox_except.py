"""``skip_sandbox_except`` is for tests of one layer at a time."""

from __future__ import annotations

import warnings

import pytest

import pyspawner
from support import communicate, run, spawn

OPTIONAL = ["drop_capabilities", "setuid", "no_new_privs", "landlock", "seccomp"]
ALWAYS = ["namespaces", "cgroup", "id_map", "network", "mounts", "session", "rlimits"]


def layers(client, *names: str) -> list[str]:
    config = pyspawner.SandboxConfig(skip_sandbox_except=frozenset(names))
    child = spawn(client, "pass", sandbox=config)
    communicate(child)
    return list(child.layers)


def with_always(*optional: str) -> list[str]:
    """The layers in their order: the limits come just before the filter."""
    first = [*ALWAYS[:-1], *(name for name in OPTIONAL[:-1] if name in optional), ALWAYS[-1]]
    return [*first, *(name for name in OPTIONAL[-1:] if name in optional)]


@pytest.mark.parametrize("name", OPTIONAL)
def test_only_the_named_optional_layer_is_on(client, name):
    assert layers(client, name) == with_always(name)


def test_several_may_be_named(client):
    names = ("seccomp", "no_new_privs", "setuid")
    assert layers(client, *names) == with_always(*names)


@pytest.mark.parametrize("gives_powers_up", ["setuid", "drop_capabilities"])
def test_a_filter_that_the_kernel_refuses_for_want_of_another_layer_is_no_downgrade(client, gives_powers_up):
    with pytest.raises(pyspawner.SandboxError, match="name it too in skip_sandbox_except") as caught:
        layers(client, "seccomp", gives_powers_up)
    assert caught.value.layer == "seccomp"


@pytest.mark.parametrize("name", ["no_such_layer", "Seccomp", "", *ALWAYS])
def test_a_name_that_is_no_optional_layer_enables_nothing_and_disables_nothing_else(client, name):
    assert layers(client, name) == ALWAYS


def test_empty_means_every_layer(client):
    assert layers(client) == with_always(*OPTIONAL)


def test_it_warns_that_the_sandbox_is_weakened_at_the_callers_line(client):
    config = pyspawner.SandboxConfig(skip_sandbox_except=frozenset({"setuid"}))
    with pytest.warns(pyspawner.InsecureSandboxWarning, match="weakened") as caught:
        communicate(client.spawn_child(["", {}], sandbox_config=config))
    assert caught[0].filename == __file__


def test_without_it_there_is_no_warning(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(client, "pass")


def test_a_warning_made_an_error_leaves_nothing(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error", pyspawner.InsecureSandboxWarning)
        with pytest.raises(pyspawner.InsecureSandboxWarning):
            layers(client, "setuid")


def test_a_string_in_place_of_a_set_is_bad_input(client):
    config = pyspawner.SandboxConfig(skip_sandbox_except="seccomp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="frozenset"):
        spawn(client, "pass", sandbox=config)
