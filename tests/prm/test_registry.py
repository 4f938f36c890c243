"""Which format a model gets, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rsd_integrations import prm
from rsd_integrations.errors import ConfigError, ModelError
from rsd_integrations.prm import Feed, Head, PRMFormat, find_prm_format, prm_format_names, register_prm_format
from rsd_integrations.prm import registry as registry_module
from rsd_integrations.prm.trl import TRLFormat
from rsd_integrations.types import Message
from tests.small_tokenizers import LLAMA3, byte_level, sentencepiece_like

BUILT_IN = (
    "judge",
    "math_shepherd",
    "qwen",
    "reasonflux",
    "rlhflow",
    "sequence",
    "skywork",
    "trl",
    "versaprm",
)
QWEN = byte_level(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"), bos="<|endoftext|>")
LLAMA = byte_level(
    LLAMA3,
    special=("<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|endoftext|>",
    eos="<|eot_id|>",
)
MISTRAL = sentencepiece_like(add_bos=True)


def config(architecture: str = "", name: str = "", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(architectures=[architecture], _name_or_path=name, model_type="x", **more)


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    before = dict(registry_module._formats)
    yield
    registry_module._formats.clear()
    registry_module._formats.update(before)


class Mine(PRMFormat):
    name: ClassVar[str] = "mine"
    head: ClassVar[Head] = "lm"

    @classmethod
    def detect(cls, config: Any, tokenizer: Any) -> bool:
        return "mine" in config._name_or_path

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return (1,)

    def step(self, body: str, index: int) -> Feed:
        return Feed((2,), 0)

    def reward(self, outputs: Sequence[float]) -> float:
        return outputs[0]


def test_names() -> None:
    assert prm_format_names() == BUILT_IN


def test_every_format_that_has_a_file_is_registered() -> None:
    """By an import of the package, which is all that users do."""
    folder = Path(prm.__file__).parent
    marked = {one.stem for one in folder.glob("*.py") if "\n@register_prm_format\n" in one.read_text("utf-8")}
    made = {cls.__module__.rpartition(".")[2] for cls in registry_module._formats.values()}
    assert made == marked
    code = "import rsd_integrations.prm as prm; print(*prm.prm_format_names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == prm_format_names()


# Architectures and auto_map as in the published config.json files.
PUBLISHED = [
    ("Qwen2ForProcessRewardModel", "Qwen/Qwen2.5-Math-PRM-7B", {}, QWEN, "qwen"),
    ("Qwen2ForProcessRewardModel", "/models/mirror", {}, QWEN, "qwen"),
    ("Qwen2ForProcessRewardModel", "Gen-Verse/ReasonFlux-PRM-7B", {}, QWEN, "reasonflux"),
    # Folders: those above, the owner's and the hub cache's say nothing of the model.
    ("Qwen2ForProcessRewardModel", "/reasonflux-vs-qwen/Qwen2.5-Math-PRM-7B", {}, QWEN, "qwen"),
    ("Qwen2ForProcessRewardModel", "ReasonFlux-Lovers/Qwen2.5-Math-PRM-7B", {}, QWEN, "qwen"),
    ("Qwen2ForProcessRewardModel", "mine/ReasonFlux_PRM-7B/", {}, QWEN, "reasonflux"),
    ("Qwen2ForProcessRewardModel", r"D:\models\ReasonFlux-PRM-7B", {}, QWEN, "reasonflux"),
    (
        "Qwen2ForProcessRewardModel",
        "/hub/models--Gen-Verse--ReasonFlux-PRM-7B/snapshots/0c5fa2/",
        {},
        QWEN,
        "reasonflux",
    ),
    ("Qwen2ForProcessRewardModel", "/versaprm/models--reasonflux--Qwen/snapshots/0c5f", {}, QWEN, "qwen"),
    (
        "Qwen2ForPrmModel",
        "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
        {"auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"}},
        QWEN,
        "skywork",
    ),
    ("MistralForCausalLM", "peiyi9979/math-shepherd-mistral-7b-prm", {}, MISTRAL, "math_shepherd"),
    ("LlamaForCausalLM", "UW-Madison-Lee-Lab/VersaPRM-Base-8B", {}, LLAMA, "versaprm"),
    ("LlamaForCausalLM", "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data", {}, LLAMA, "rlhflow"),
    ("LlamaForCausalLM", "RLHFlow/Llama3.1-8B-PRM-Mistral-Data", {}, LLAMA, "rlhflow"),
    ("Qwen2ForTokenClassification", "trl-lib/Qwen2-0.5B-Reward-PRM", {"num_labels": 2}, QWEN, "trl"),
    ("LlamaForSequenceClassification", "Skywork/Skywork-Reward-8B", {"num_labels": 1}, LLAMA, "sequence"),
    ("GPT2ForTokenClassification", "me/prm", {"id2label": {0: "bad", 1: "good"}}, QWEN, "trl"),
    # Where formats go by the name of a language model, another head with such a name is not theirs.
    (
        "MistralForTokenClassification",
        "me/math-shepherd-versaprm-prm-mistral-data",
        {"num_labels": 2},
        MISTRAL,
        "trl",
    ),
]


@pytest.mark.parametrize(("architecture", "name", "more", "tokenizer", "expected"), PUBLISHED)
def test_auto_knows_published_models(
    architecture: str, name: str, more: dict[str, Any], tokenizer: Any, expected: str
) -> None:
    made = config(architecture, name, **more)
    form = find_prm_format("auto", made, tokenizer)
    assert form.name == expected
    detected = [cls.name for cls in registry_module._formats.values() if cls.detect(made, tokenizer)]
    assert detected == [expected], "two formats claim the same model"


def test_auto_prefers_the_models_own_word() -> None:
    options = {"format": "trl", "separator": "\n\n", "threshold": 0.9}
    form = find_prm_format("auto", config("Qwen2ForProcessRewardModel", rsd_prm=options), QWEN)
    assert form.name == "trl"
    assert form.recommended_threshold == 0.9
    assert form.step("12", 0).ids[-1:] == tuple(QWEN.encode("\n\n"))


def test_auto_that_finds_nothing_names_the_model_and_the_choices() -> None:
    with pytest.raises(ModelError) as caught:
        find_prm_format("auto", config("LlamaForCausalLM", "meta/llama"), LLAMA)
    for word in ("LlamaForCausalLM", "meta/llama", "math_shepherd", '"judge"', "prm_format="):
        assert word in str(caught.value)
    with pytest.raises(ModelError, match="Qwen2ForTokenClassification"):  # Of named entities, say.
        find_prm_format("auto", config("Qwen2ForTokenClassification", "me/ner", num_labels=9), QWEN)
    with pytest.raises(ModelError) as caught:
        find_prm_format("auto", SimpleNamespace(), LLAMA)
    assert "this model" in str(caught.value)


def test_a_registered_format_is_found_by_name_and_asked_first() -> None:
    assert register_prm_format(Mine) is Mine
    assert "mine" in prm_format_names()
    assert isinstance(find_prm_format("mine", config(), QWEN), Mine)
    taken = config("Qwen2ForProcessRewardModel", "me/mine")
    assert isinstance(find_prm_format("auto", taken, QWEN), Mine)
    assert register_prm_format(Mine) is Mine, "registering the same class again is harmless"


def test_choices_by_class_instance_and_callable() -> None:
    assert isinstance(find_prm_format(Mine, config(), QWEN), Mine)
    instance = Mine(QWEN)
    assert find_prm_format(instance, config(), QWEN) is instance
    assert instance.step("x", 0).read == 0, "the only token may be the one that is read"

    def make(tokenizer: Any, options: Mapping[str, Any]) -> PRMFormat:
        return Mine(tokenizer, {**options, "seen": True})

    made = find_prm_format(make, config(rsd_prm={"format": "mine"}), QWEN)
    assert made.options == {"format": "mine", "seen": True}
    with pytest.raises(ConfigError, match="returned str"):
        find_prm_format(lambda *_: "qwen", config(), QWEN)


def test_options_are_for_the_format_they_name() -> None:
    other = config(rsd_prm={"format": "trl", "separator": "\n\n"})
    form = find_prm_format("qwen", other, QWEN)
    assert form.options == {}
    assert form.step("12", 0).ids[-1] == QWEN.convert_tokens_to_ids("<extra_0>")


def other_format(**members: Any) -> type[PRMFormat]:
    return type("Other", (Mine,), members)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (int, "not a concrete subclass"),
        (lambda: None, "not a concrete subclass"),
        (type("Abstract", (PRMFormat,), {"name": "abstract"}), "not a concrete subclass"),
        (other_format(name=""), "has the name ''"),
        (other_format(name="auto"), "has the name 'auto'"),
        (other_format(name="qwen"), "registered already"),
    ],
)
def test_registration_refuses(bad: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        register_prm_format(bad)
    assert caught.value.hint
    assert prm_format_names() == BUILT_IN


@pytest.mark.parametrize(
    ("choice", "options", "message"),
    [
        ("qwenn", None, "no PRM format 'qwenn'"),
        (3, None, "prm_format is 3"),
        (PRMFormat, None, "PRMFormat'> is not a concrete subclass"),
        (dict, None, "<class 'dict'> is not a concrete subclass"),
        (lambda tokenizer: None, None, "does not take what it is called with: too many positional"),
        ("auto", {"format": "nope"}, "no PRM format 'nope'"),
        ("auto", {"threshold": 0.5}, "rsd_prm in the PRM's config"),
        ("auto", ["trl"], "rsd_prm in the PRM's config"),
        ("auto", {"format": "trl", "seperator": "\n"}, "no option 'seperator'"),
        ("auto", {"format": "trl", "threshold": 2}, "threshold of PRM format 'trl' is 2"),
        ("auto", {"format": "trl", "threshold": True}, "threshold of PRM format 'trl' is True"),
    ],
)
def test_wrong_choices_and_options(choice: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_prm_format(choice, config(rsd_prm=options), QWEN)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "tokenizer", "message"),
    [
        ("qwen", LLAMA, "no token '<extra_0>'"),
        ("qwen", MISTRAL, "no token '<extra_0>'"),
        ("math_shepherd", byte_level(None, special=("<|im_end|>",)), None),
        ("skywork", byte_level(), "no beginning-of-sequence token"),
        ("rlhflow", MISTRAL, "no chat template"),
        ("sequence", MISTRAL, "no chat template"),
        ("judge", MISTRAL, "no chat template"),
        ("versaprm", MISTRAL, "is not one token"),
    ],
)
def test_tokenizers_that_do_not_fit(name: str, tokenizer: Any, message: str | None) -> None:
    if message is None:
        assert find_prm_format(name, config(), tokenizer).name == name
        return
    with pytest.raises(ModelError, match=message) as caught:
        find_prm_format(name, config(), tokenizer)
    assert caught.value.hint


@pytest.mark.parametrize(("name", "count"), [("trl", 1), ("trl", 3), ("sequence", 3)])
def test_a_model_with_other_labels_is_refused(name: str, count: int) -> None:
    """At loading, however the format is chosen: one of three labels would be taken for the good one."""
    made = config(num_labels=count, rsd_prm={"format": name, "threshold": 0.9})
    for choice in (name, "auto", registry_module._formats[name], registry_module._formats[name](LLAMA)):
        with pytest.raises(ModelError, match=rf"has {count} labels?, of which PRM format '{name}'") as caught:
            find_prm_format(choice, made, LLAMA)
        assert caught.value.hint


def test_an_option_says_which_of_many_labels_is_good() -> None:
    made = config(num_labels=3, rsd_prm={"format": "trl", "positive": 2})
    assert find_prm_format("auto", made, QWEN).reward([0.0, 0.0, 99.0]) == pytest.approx(1.0)


def test_thresholds() -> None:
    high, low = ("judge", "qwen", "skywork"), ("math_shepherd", "rlhflow", "trl", "versaprm")
    known = {**dict.fromkeys(high, 0.7), **dict.fromkeys(low, 0.5), "reasonflux": None, "sequence": None}
    assert {name: cls.threshold for name, cls in registry_module._formats.items()} == known
    assert find_prm_format("qwen", config(), QWEN).recommended_threshold == 0.7
    assert find_prm_format("sequence", config(), QWEN).recommended_threshold is None
    options = {"format": "sequence", "threshold": 0}
    assert find_prm_format("auto", config(rsd_prm=options), QWEN).recommended_threshold == 0.0


def test_trl_models_get_no_chat_template_unless_their_config_says_so() -> None:
    chat: list[Message] = [{"role": "user", "content": "Janet"}]
    plain = (QWEN.bos_token_id, *QWEN.encode("Janet"))
    assert find_prm_format("trl", config(), QWEN).prompt(chat) == plain
    other = config(rsd_prm={"format": "trl", "threshold": 0.9, "separator": "\n\n"})
    assert find_prm_format("auto", other, QWEN).prompt(chat) == plain, "an option changes only what it names"
    assert TRLFormat(QWEN).prompt(chat) == plain, "made by hand"
    marked = find_prm_format("auto", config(rsd_prm={"format": "trl", "chat": True}), QWEN).prompt(chat)
    assert marked == tuple(QWEN.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def test_formats_import_nothing_heavy() -> None:
    code = (
        "import sys, rsd_integrations.prm, rsd_integrations.encoding;"
        "print([name for name in ('torch', 'transformers', 'tokenizers', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_class_that_is_made_again_takes_the_place_of_its_former_self() -> None:
    """As by another run of a notebook's cell."""
    register_prm_format(Mine)
    again = type("Mine", (Mine,), {"__module__": Mine.__module__, "__qualname__": Mine.__qualname__})
    register_prm_format(again)
    assert type(find_prm_format("mine", config(), QWEN)) is again
    other = type("Other", (Mine,), {})
    with pytest.raises(ConfigError, match="'mine' is registered already"):
        register_prm_format(other)


def test_a_format_needs_a_name() -> None:
    nameless = type("Nameless", (PRMFormat,), {**vars(Mine), "name": ""})
    for use in (register_prm_format, lambda form: find_prm_format(form, config(), QWEN)):
        with pytest.raises(ConfigError, match="has the name ''"):
            use(nameless)


@pytest.mark.parametrize("head", ["logits", None])
def test_a_format_needs_a_head_that_there_is(head: Any) -> None:
    odd = type("Odd", (Mine,), {"name": "odd", "head": head})
    with pytest.raises(ConfigError, match=f"has the head {head!r}. Set head = one of 'lm', 'token'"):
        register_prm_format(odd)


def test_a_format_that_fails_to_look_is_named() -> None:
    @register_prm_format
    class Bad(Mine):
        name: ClassVar[str] = "bad"

        @classmethod
        def detect(cls, config: Any, tokenizer: Any) -> bool:
            return bool(config.my_flag)

    with pytest.raises(ConfigError, match=r"'bad' failed to look at a model: AttributeError: .*my_flag"):
        find_prm_format("auto", config("Qwen2ForProcessRewardModel"), QWEN)
