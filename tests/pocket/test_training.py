"""The recipe in miniature: growth keeps the function, training learns and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from rsd_integrations.pocket import pocket_paths  # noqa: E402
from rsd_integrations.pocket.data import IGNORE, batches, encode_chat, encode_step, prompt_messages  # noqa: E402
from rsd_integrations.pocket.loop import Budget, Recipe, train_language_model  # noqa: E402
from rsd_integrations.pocket.model import grow, make_config, new_model, use_half_products  # noqa: E402
from rsd_integrations.pocket.optim import make_optimizers, set_rates  # noqa: E402
from rsd_integrations.pocket.prm import build_prm, freeze_trunk  # noqa: E402
from rsd_integrations.pocket.task import SEPARATOR, held_out  # noqa: E402
from rsd_integrations.pocket.tokenizer import load_tokenizer  # noqa: E402
from rsd_integrations.pocket.trunk import CODE, TrunkModel  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(pocket_paths().target)


@pytest.fixture(scope="module")
def ids() -> Any:
    return torch.randint(3, 600, (2, 40), generator=torch.Generator().manual_seed(0))


def small(tokenizer: Any, seed: int = 0) -> Any:
    return new_model(make_config(len(tokenizer), hidden=32, layers=1, heads=2, mlp=48, head_dim=16), seed)


def apart(one: Any, other: Any) -> float:
    """The distance between two models' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((a - b).detach().square().sum() for a, b in pairs)) ** 0.5


def test_labels_cover_the_answer_and_its_end_only(tokenizer: Any) -> None:
    problem = held_out(1)[0]
    ids, labels = encode_chat(tokenizer, prompt_messages(problem), problem.solution)
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
    assert tokenizer.decode(learnt) == problem.solution + "<|im_end|>"


def test_steps_encoded_apart_are_the_solution_encoded_whole(tokenizer: Any) -> None:
    solution = held_out(1)[0].solution
    apart = [token for step in solution.split(SEPARATOR) for token in encode_step(tokenizer, step)]
    assert apart == tokenizer.encode(solution + SEPARATOR)


def test_batches_depend_on_seed_and_number_only(tokenizer: Any) -> None:
    stream = batches(tokenizer, 5, size=2, pool=4)
    first = [next(stream) for _ in range(6)]
    later = next(batches(tokenizer, 5, size=2, pool=4, start=5))
    assert torch.equal(first[5].ids_BT, later.ids_BT)


def test_a_look_back_head_looks_back(tokenizer: Any, ids: Any) -> None:
    model = new_model(make_config(len(tokenizer), hidden=48, layers=1, heads=3, mlp=32), 0)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights_BHTT = model(input_ids=ids, output_attentions=True).attentions[0]
    for head, distance in ((0, 1), (1, 2)):
        seen = weights_BHTT[:, head].diagonal(-distance, 1, 2)[:, 3:]
        assert seen.min() > 0.9


def test_growing_keeps_the_function(tokenizer: Any, ids: Any) -> None:
    model = small(tokenizer).eval()
    larger = grow(model, layers=3, heads=4, mlp=96, seed=1).eval()
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, larger(input_ids=ids).logits, atol=1e-5)


def test_half_products_are_close_and_leave_the_weights_alone(tokenizer: Any, ids: Any) -> None:
    model = small(tokenizer).eval()
    with torch.no_grad():
        exact = model(input_ids=ids).logits
        use_half_products(model)
        near = model(input_ids=ids).logits
        use_half_products(model, False)
        again = model(input_ids=ids).logits
    assert torch.equal(exact, again)
    assert 0 < (exact - near).abs().max() < 0.2


def test_the_comparison_is_code_minus_prediction(tokenizer: Any, ids: Any) -> None:
    trunk = TrunkModel(
        make_config(len(tokenizer), hidden=64, layers=1, heads=4, mlp=96, head_dim=16), 0
    ).eval()
    with torch.no_grad():
        trunk.model.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    prm = build_prm(trunk, 0).eval()
    seen: dict[str, Any] = {}
    prm.model.layers[-2].post_attention_layernorm.register_forward_hook(lambda _m, x, _y: seen.update(x=x[0]))
    with torch.no_grad():
        prm(input_ids=ids)
        predicted = trunk.head(trunk.model(input_ids=ids).last_hidden_state)[:, :-1]
        codes = trunk.model.embed_tokens.weight[ids[:, 1:], -CODE:]
    assert torch.allclose(seen["x"][:, 1:, -CODE:], codes - predicted, atol=1e-4)


def test_only_the_upper_part_of_the_reward_model_is_trained(tokenizer: Any) -> None:
    trunk = TrunkModel(make_config(len(tokenizer), hidden=64, layers=1, heads=4, mlp=96, head_dim=16), 0)
    prm = build_prm(trunk, 0)
    freeze_trunk(prm)
    trained = {name for name, weight in prm.named_parameters() if weight.requires_grad}
    assert not any(
        name.startswith(("model.embed", "model.layers.0.", "model.layers.1.self_attn")) for name in trained
    )
    assert {"score.weight", "model.layers.1.mlp.up_proj.weight"} <= trained


def test_an_interrupted_run_resumes_to_the_same_weights(tokenizer: Any, tmp_path: Path) -> None:
    recipe = Recipe(seed=1, size=2, constant=1.0)
    quiet = {"report": lambda _line: None}
    whole, halves = small(tokenizer), small(tokenizer)
    train_language_model(whole, tokenizer, recipe, Budget(tokens=3000), tmp_path / "whole", **quiet)
    train_language_model(halves, tokenizer, recipe, Budget(tokens=1500), tmp_path / "halves", **quiet)
    resumed = small(tokenizer, seed=9)
    state = train_language_model(
        resumed, tokenizer, recipe, Budget(tokens=3000), tmp_path / "halves", **quiet
    )
    assert state.tokens >= 3000
    assert state.step == json.loads((tmp_path / "whole" / "state.json").read_text())["step"]
    # As rounded products allow; a momentum that was lost or a batch seen twice is more.
    assert apart(whole, resumed) < 0.01 * apart(whole, small(tokenizer))


def test_training_is_the_plain_loop(tokenizer: Any, tmp_path: Path) -> None:
    """Gradients of one batch at a time, of the mean over answers' tokens."""
    recipe, budget = Recipe(seed=1, size=2, constant=1.0), Budget(tokens=1500)
    trained, plain = small(tokenizer), small(tokenizer)
    state = train_language_model(trained, tokenizer, recipe, budget, tmp_path, report=lambda _line: None)
    use_half_products(plain, True)
    optimizers = make_optimizers(plain, muon_lr=recipe.muon_lr, adam_lr=recipe.adam_lr)
    stream = batches(tokenizer, 1, size=2)
    for step in range(state.step):
        batch = next(stream)
        plain.zero_grad()
        logits_BTV = plain(input_ids=batch.ids_BT).logits[:, :-1]
        torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), batch.labels_BT[:, 1:].flatten(), ignore_index=IGNORE
        ).backward()
        set_rates(optimizers, 0.5 if step else 0.0, constant=1.0)
        for optimizer in optimizers:
            optimizer.step()
    assert state.step > 2
    assert apart(trained, plain) < 0.1 * apart(trained, small(tokenizer))  # 0.04: products are rounded.


@pytest.mark.slow
def test_a_hundred_steps_learn_the_format(tokenizer: Any, tmp_path: Path) -> None:
    losses: list[str] = []
    model = new_model(make_config(len(tokenizer), hidden=48, layers=2, heads=3, mlp=96), 0)
    recipe = Recipe(seed=1, size=8, muon_lr=0.007, adam_lr=0.012)
    state = train_language_model(
        model, tokenizer, recipe, Budget(tokens=150_000), tmp_path, report=losses.append
    )
    assert state.loss < 4.0
    assert losses[-1].endswith("done")
