"""From tokens to columns."""

from __future__ import annotations

import math

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rsd_integrations.errors import ModelError
from rsd_integrations.prm.readout import label_id, sigmoid, single_token


def test_a_sigmoid_of_any_size() -> None:
    """Outcome reward models give logits far below zero, which are still to be told apart."""
    assert (sigmoid(-1e9), sigmoid(1e9), sigmoid(0.0)) == (0.0, 1.0, 0.5)
    assert sigmoid(-40.0) == pytest.approx(math.exp(-40.0), rel=1e-12, abs=0.0)
    assert sigmoid(-2.0) == pytest.approx(1 - sigmoid(2.0), rel=1e-12)


def test_a_tag_is_one_known_token() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "good": 1, "bad": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert single_token(tokenizer, "bad", "label") == 2
    for text, told in (("fair", "but unknown to it"), ("good bad", "but 2"), ("good fair", "unknown to it")):
        with pytest.raises(ModelError, match=rf"the label '{text}' is not one token .* {told}\..*prm_format"):
            single_token(tokenizer, text, "label")
    assert label_id(tokenizer, "bad") == label_id(tokenizer, "good bad") == 2
    for text in ("fair", ""):
        with pytest.raises(ModelError, match=rf"vocabulary has no token for the label '{text}'.*prm_format"):
            label_id(tokenizer, text)
