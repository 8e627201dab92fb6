"""Modules that zygotes import, and a Client to derive others from."""

from __future__ import annotations

import textwrap

import pytest

import pyspawner


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Write a module that zygotes find which are started from now on."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return make


@pytest.fixture(scope="module")
def parent():
    """A zygote to derive others from, which lives as long as the tests of a file."""
    with pyspawner.Client(child_main="support.run_source", preload_imports=["attacks"]) as client:
        yield client
