"""From tokens to columns."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rsd_integrations.errors import ModelError
from rsd_integrations.prm.readout import single_token


def test_a_tag_is_one_known_token() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "good": 1, "bad": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert single_token(tokenizer, "bad", "label") == 2
    for text, told in (("fair", "but unknown to it"), ("good bad", "but 2"), ("good fair", "unknown to it")):
        with pytest.raises(ModelError, match=rf"the label '{text}' is not one token .* {told}\..*prm_format"):
            single_token(tokenizer, text, "label")
