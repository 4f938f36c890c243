"""Servers for these tests: doubles of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from rsd_integrations import RSDPipeline
from rsd_integrations.pocket import pocket_paths
from tests.vllm.double import Double, double


@dataclass
class Trio:
    """The pocket trio's servers, and a pipeline over them."""

    draft: Double
    target: Double
    prm: Double
    pipe: RSDPipeline

    @property
    def urls(self) -> dict[str, str]:
        return {"draft": self.draft.url, "target": self.target.url, "prm": self.prm.url}


@pytest.fixture(scope="module")
def shared_trio() -> Iterator[Trio]:
    paths = pocket_paths()
    with ExitStack() as stack:
        servers = [stack.enter_context(double(path)) for path in (paths.draft, paths.target, paths.prm)]
        pipe = stack.enter_context(RSDPipeline.from_vllm(*(server.url for server in servers)))
        yield Trio(*servers, pipe)


@pytest.fixture
def trio(shared_trio: Trio) -> Trio:
    for server in (shared_trio.draft, shared_trio.target, shared_trio.prm):
        server.faults.clear()
        server.asked.clear()
        server.cached = None
    return shared_trio


@pytest.fixture(scope="module")
def pocket() -> Iterator[RSDPipeline]:
    """The same models in this process."""
    with RSDPipeline.pocket() as pipe:
        yield pipe
