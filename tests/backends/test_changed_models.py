"""Models, tokenizers and configs that somebody else changes or uses while a pipeline has them."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rsd_integrations import RSDPipeline
from rsd_integrations.backends.torch import traced
from rsd_integrations.backends.torch.plan import SlotFeed
from rsd_integrations.backends.torch.weights import Weights
from tests import oracle
from tests.backends.test_slots import close, runner_of
from tests.recording import Recordings
from tests.tiny_models import causal, tokenizer, trio

QUESTION = "tell me about marbles and what Ava has, please do"
COUNT = 30


def load(draft: Any, target: Any = "Llama", **options: Any) -> RSDPipeline:
    return RSDPipeline.from_pretrained(**trio(draft, target), device="cpu", **options)


def plain(model: Any, question: str = QUESTION) -> str:
    """By transformers' own generate."""
    return str(oracle.plain_generate(oracle.Party(model, tokenizer("ascii")), question, COUNT)[1])


def ours(pipe: RSDPipeline, question: str = QUESTION) -> str:
    """The draft's answer."""
    return pipe.generate(question, threshold=0.0, max_tokens=COUNT).text


def changed_in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def replaced(model: Any) -> None:
    model.load_state_dict(copy.deepcopy(causal("Qwen2", 7, "ascii").state_dict()), assign=True)


def rounded(model: Any) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * -1.5)


def adapted(model: Any) -> None:
    """As adapters that wrap a layer do."""
    inner = model.model.layers[1].mlp
    model.model.layers[1].mlp = torch.nn.Sequential(inner, torch.nn.Linear(32, 32))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        *((change, {}) for change in (changed_in_place, replaced, rounded, hooked, adapted)),
        (replaced, {"cpu_traces": False}),
        pytest.param(replaced, {"prefix_caching": False}, marks=pytest.mark.slow),
    ],
)
def test_changed_weights_are_those_that_answer(
    change: Callable[[Any], None], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "PAYS", 6)
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    with load(model, **options) as pipe:
        for _ in range(3):
            before = ours(pipe)
        assert before == plain(model)
        torch.manual_seed(0)
        change(model)
        assert ours(pipe) == plain(model)
        assert ours(pipe) == plain(model), "asked again"
    assert change is rounded or before != plain(model)


def test_recordings_are_made_anew() -> None:
    """As CUDA graphs, which know their tensors by address."""
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    runner, tokens = runner_of(model, launcher=Recordings().launcher), [5, 9, 13, 21]
    for change in (None, changed_in_place, replaced):
        if change is not None:
            change(model)
        slot, _ = runner.claim()
        for length, token in enumerate(tokens):
            (output,) = runner.run([SlotFeed(slot, length, [token])])
            assert close(model, output, tokens[: length + 1])
        runner.release(slot)


def test_a_look_tells_what_changed() -> None:
    model = torch.nn.Linear(2, 2)
    weights = Weights(model)
    assert weights.look() == (False, False)
    with torch.no_grad():
        model.weight.mul_(2.0)
    assert weights.look() == (True, False)
    model.weight = torch.nn.Parameter(model.weight.detach().clone())
    assert weights.look() == (True, True)
    model.register_buffer("more", torch.zeros(1))
    assert weights.look() == (True, True)
    model.weight.data = torch.ones(2, 2)
    assert weights.look() == (True, True)
    model.register_forward_hook(lambda *_: None)
    assert weights.look() == (True, True)
    assert weights.look() == (False, False)


class LoRA(torch.nn.Module):
    """A layer with two adapters, which does as PEFT's do when it is switched."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        shape = base_layer.weight.shape
        self.deltas = torch.nn.ParameterDict({name: torch.randn(shape) * 0.3 for name in "ab"})
        self.scaling = dict.fromkeys("ab", 1.0)
        self.active_adapter = ["a"]
        self.disable_adapters = False
        self.merged_adapters: list[str] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.disable_adapters:
            unmerge(self)
        outputs: torch.Tensor = self.base_layer(inputs)
        if self.disable_adapters or self.merged_adapters:
            return outputs
        return outputs + inputs @ self.delta().T

    def delta(self) -> torch.Tensor:
        (name,) = self.active_adapter
        return self.deltas[name] * self.scaling[name]


def merge(layer: LoRA) -> None:
    layer.base_layer.weight.data += layer.delta()
    layer.merged_adapters.extend(layer.active_adapter)


def unmerge(layer: LoRA) -> None:
    if layer.merged_adapters:
        layer.base_layer.weight.data -= layer.delta()
        layer.merged_adapters.clear()


def set_adapter(layer: LoRA) -> None:
    layer.active_adapter = ["b"]


def set_scale(layer: LoRA) -> None:
    layer.scaling["b"] *= -2.0


def disable(layer: LoRA) -> None:
    layer.disable_adapters = True


@pytest.mark.parametrize("kept", ["cpu_traces", "prefix_caching"])
def test_switched_adapters_are_those_that_answer(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "PAYS", 6)
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    torch.manual_seed(0)
    model.model.layers[0].mlp.down_proj = layer = LoRA(model.model.layers[0].mlp.down_proj).eval()
    options = dict.fromkeys(("cpu_traces", "prefix_caching"), False) | {kept: True}
    with load(model, **options) as pipe, torch.no_grad():
        before = ours(pipe)
        for switch in (merge, disable):
            switch(layer)
            assert ours(pipe) == plain(model), switch.__name__
    assert before != plain(model)


def test_a_look_tells_of_each_switch() -> None:
    layer = LoRA(linear())
    model, ends = torch.nn.Sequential(layer), weakref.ref(layer)
    weights = Weights(model)
    with torch.no_grad():
        for switch in (merge, unmerge, set_adapter, set_scale, disable):
            switch(layer)
            assert weights.look() == (True, True), switch.__name__
            assert weights.look() == (False, False)
    del layer
    model[0] = linear()
    assert ends() is None


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = linear()
        self.register_buffer("scale", torch.ones(64, 64))


def linear() -> torch.nn.Linear:
    return torch.nn.Linear(64, 64, bias=False)


def another_layer(block: Any) -> None:
    del block.lin
    block.lin = linear()


def two_layers(block: Any) -> None:
    block.lin = linear()
    block.lin = linear()


def another_parameter(block: Any) -> None:
    del block.lin.weight
    block.lin.weight = torch.nn.Parameter(torch.ones(64, 64))


def another_buffer(block: Any) -> None:
    del block.scale
    block.scale = torch.nn.Buffer(torch.ones(64, 64))


def other_numbers(block: Any) -> None:
    for shape in ((0,), (64, 64)):
        block.lin.weight.data = torch.ones(shape)


def another_name(block: Any) -> None:
    del block.lin.bias
    block.lin.register_parameter("other", None)


def another_hook(block: Any) -> None:
    for _ in range(2):
        block.lin.register_forward_hook(lambda *_: None).remove()
    block.hook.remove()
    block.hook = block.lin.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change",
    [
        another_layer,
        two_layers,
        another_parameter,
        another_buffer,
        other_numbers,
        another_name,
        another_hook,
    ],
)
def test_what_comes_in_place_of_another_does_not_pass_for_it(change: Callable[[Any], None]) -> None:
    """Though Python and torch give it the same id and address, as they often do."""
    block: Any = Block()
    block.hook = block.lin.register_forward_hook(lambda *_: None)
    weights = Weights(block)
    for _ in range(50):
        change(block)
        assert weights.look() == (True, True)
        assert weights.look() == (False, False)
        if change is another_name:
            del block.lin.other
            block.lin.register_parameter("bias", None)
            weights.look()


def test_weights_that_were_dropped_are_gone() -> None:
    block = Block()
    weights, ends = Weights(block), weakref.ref(block.lin.weight)
    block.lin = linear()
    assert ends() is None
    assert weights.look() == (True, True)


def test_tensors_can_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``Module.to`` does with quantized weights. torch refuses to where somebody refers to one weakly."""
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
    block = Block()
    weights = Weights(block)
    block.to(torch.float64)
    assert weights.look() == (True, True)


def test_tensors_without_storage_are_watched() -> None:
    block: Any = Block()
    block.register_buffer("few", torch.eye(64).to_sparse())
    weights, ends = Weights(block), weakref.ref(block.few)
    for _ in range(20):
        del block.few
        assert ends() is None
        block.register_buffer("few", torch.eye(64).to_sparse())
        assert weights.look() == (True, True)
        assert weights.look() == (False, False)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_layers_replaced_between_requests(times: int) -> None:
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    with load(model) as pipe:
        for seed in range(6):
            for _ in range(times):
                torch.manual_seed(seed)
                model.model.layers[0].mlp = torch.nn.Sequential(
                    torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
                )
            assert ours(pipe) == plain(model)


def test_weights_that_torch_does_not_count() -> None:
    with torch.inference_mode():
        model = torch.nn.Linear(2, 2)
    model.register_buffer("offloaded", torch.empty(2, device="meta"))
    weights = Weights(model)
    model.register_buffer("offloaded", torch.empty(2, device="meta"))
    assert weights.look() == (False, False)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_another_attention_set_later_is_kept(key_heads: int) -> None:
    model = copy.deepcopy(causal("Qwen2", 0, "ascii", num_key_value_heads=key_heads))
    with load(model, prefix_caching=False) as pipe:
        for attention in ("sdpa", "eager", "sdpa"):
            model.set_attn_implementation(attention)
            assert ours(pipe) == plain(model)
            assert model.config._attn_implementation == attention


@contextmanager
def working(pipe: RSDPipeline) -> Iterator[None]:
    """Another thread asks the pipeline all the while."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            pipe.generate("hello " * 30, threshold=0.5, max_tokens=40)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_models_at_work_can_be_loaded_again() -> None:
    draft, target = causal("Qwen2", 0, "ascii"), causal("Llama", 1, "ascii")
    with load(draft, target) as pipe, working(pipe):
        for _ in range(3):
            with load(draft, target) as other:
                assert ours(other) == plain(draft)


def test_a_tokenizer_in_use_elsewhere_cuts_no_prompt() -> None:
    """A call with truncation changes a fast tokenizer for whoever encodes meanwhile: each has its own."""
    tokens = copy.deepcopy(tokenizer("ascii"))
    models = {role: (model, tokens) for role, (model, _) in trio().items()}
    with RSDPipeline.from_pretrained(**models, device="cpu") as pipe:
        writers = [pipe.backend.draft, pipe.backend.target]
        assert all(writer.tokenizer is not tokens for writer in writers)  # type: ignore[attr-defined]
        before = pipe.generate(QUESTION, seed=1)
        tokens.add_tokens(["me", "about"])
        assert pipe.generate(QUESTION, seed=1).usage == before.usage


def test_a_window_that_the_model_ignores() -> None:
    """As configs have that were made from another family's."""
    stray, meant = (
        causal("Llama", 0, "ascii", sliding_window=32),
        causal("Mistral", 0, "ascii", sliding_window=32),
    )
    with load(stray, meant) as pipe:
        # A cache of transformers' own would forget by that window too.
        party = oracle.Party(stray, tokenizer("ascii"))
        ids = torch.tensor([party.prompt(QUESTION)])
        whole = stray.generate(ids, max_new_tokens=COUNT, do_sample=False, use_cache=False)
        assert ours(pipe) == party.decode(whole[0, ids.shape[1] :].tolist())
        assert pipe.generate(QUESTION, threshold=2.0, max_tokens=COUNT).text == plain(meant)
        assert [pipe.backend.draft.info.sliding_window, pipe.backend.target.info.sliding_window] == [None, 32]
    assert (stray.config.sliding_window, meant.config.sliding_window) == (32, 32)


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = copy.deepcopy(causal("Qwen2", 0, "ascii"))
    with load(model, prefix_caching=False) as pipe:
        broken = True

        def spread(module: Any, inputs: Any, output: Any) -> Any:
            if broken:
                output = output * float("nan")
            return output

        def refuse(module: Any, inputs: Any) -> None:
            if not inputs[0].isfinite().all():
                raise FloatingPointError("not finite")

        model.model.layers[0].mlp.register_forward_hook(spread)
        model.model.norm.register_forward_pre_hook(refuse)
        with pytest.raises(Exception, match="not finite"):
            ours(pipe)
        broken = False
        assert ours(pipe, "Hi") == plain(model, "Hi")  # Shorter: it does not write over what was left.
        cache = pipe.backend.draft.runner.cache  # type: ignore[attr-defined]
        assert all(states.isfinite().all() for states in cache.states())
