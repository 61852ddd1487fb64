"""Conditions of every test: poisoned memory, one seed, one thread unless a test asks for more, an ordinary processor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are first imported, so set before

from mp_kernels import backends, products
from support import processors

# The first call of an operator may take long; what is fast enough is the benchmarks' question. Examples are drawn anew by
# everybody who runs the tests, but not where a change is judged, which must not depend on luck.
hypothesis.settings.register_profile(
    "magic_pyramid", deadline=None, max_examples=60, print_blob=True, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("magic_pyramid")


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, or an integer's largest value, so that an element that nobody wrote cannot pass."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On tensors this small more threads only wait for each other, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Triton kernels stand behind every operator on CPU tensors, in the interpreter or on the GPU if there is one."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from support import interpreter

        interpreter.mend(monkeypatch)
    elif torch.cuda.is_available():
        from support import hardware

        hardware.lend(monkeypatch)
    else:
        pytest.skip(
            "kernels are compiled for a device, and there is none; TRITON_INTERPRET=1 runs them in the interpreter"
        )
    # Products on a GPU are torch's, with Triton's kernels in between, where a CPU computes a layer in one call.
    monkeypatch.setattr(products, "in_kernels", lambda *_: False)
    registrations = torch.library.Library("mp_kernels", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel", UserWarning)
        backends.register_triton(registrations, "CPU", backends.IN_TRITON)
    with np.errstate(all="ignore"):  # a lane that is masked out may compute nonsense, on a device too
        yield
    registrations._destroy()


@pytest.fixture(autouse=True)
def ordinary_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes float32 alone fast, whatever this one does, so that tests do not depend on it."""
    processors.set_abilities(monkeypatch, False)


@pytest.fixture
def able_processor(ordinary_processor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes every precision fast, whatever this one does."""
    processors.set_abilities(monkeypatch, True)
