"""Models of transformers in tiny configurations, with a hand-written account of their heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo import (
    CLASSES,
    END,
    IGNORED,
    PAD,
    WORDS,
    Case,
    Reading,
    last_word,
    pictures,
    plain,
    received,
    sentences,
    several,
    sounds,
    texts,
)

# transformers, with tiny configurations.

TINY = {
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "emb_dim": 16, "embedding_size": 16,
    "word_embed_proj_dim": 16, "intermediate_size": 24, "ffn_dim": 24, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "d_inner": 24, "hidden_dim": 24, "d_ff": 24, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2, "num_attention_heads": 2, "n_head": 2,
    "n_heads": 2, "num_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_key_value_heads": 2, "d_head": 8, "d_kv": 8, "head_dim": 8, "max_position_embeddings": 40,
    "n_positions": 40, "image_size": 32, "patch_size": 8, "vocab_size": WORDS,
}  # fmt: skip
AUDIO: dict[str, Any] = {
    "conv_dim": [8, 8], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 12,
}  # fmt: skip
ALWAYS = {"num_labels": CLASSES, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 0}


def transformers_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of that class whose widths and depths are those of TINY where its configuration has them."""

    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        made = getattr(transformers, name)
        defaults = made.config_class()
        kept = {key: value for key, value in TINY.items() if hasattr(defaults, key)} | ALWAYS | options
        model = made(made.config_class(**{key: value for key, value in kept.items() if value is not None}))
        with torch.no_grad():  # the weights of a language model start so small that all its features are alike
            for value in model.parameters():
                if value.dim() >= 2:
                    value.mul_(5)
                    if not value.any():  # tokens and positions that would all be alike
                        nn.init.normal_(value, std=0.1)
        return model

    return build


def transformers_cases() -> Iterator[Case]:
    pooled: list[tuple[str, str, dict[str, Any]]] = [
        ("Bert", "classifier", {}),
        ("Roberta", "classifier.out_proj", {}),
        ("DistilBert", "classifier", {}),
        ("Electra", "classifier.out_proj", {}),
        ("DebertaV2", "classifier", {}),
        ("Albert", "classifier", {}),
        ("ModernBert", "classifier", {"cls_token_id": 0, "sep_token_id": END}),
        ("MPNet", "classifier.out_proj", {}),
        ("XLM", "sequence_summary.summary", {}),
        ("XLNet", "logits_proj", {"max_position_embeddings": None}),
        ("Bart", "classification_head.out_proj", {}),
        ("T5", "classification_head.out_proj", {"decoder_start_token_id": 0}),
    ]
    for name, head, options in pooled:
        build = transformers_model(f"{name}ForSequenceClassification", **options)
        yield Case(f"transformers {name}ForSequenceClassification", build, texts, head, plain(head))
    for name in ("GPT2", "Llama", "Qwen2", "Mistral", "OPT", "GPTNeoX", "Gemma2", "CTRL"):
        head = "classifier" if name == "CTRL" else "score"
        build = transformers_model(f"{name}ForSequenceClassification")
        yield Case(f"transformers {name}ForSequenceClassification", build, texts, head, last_word(head))
    left = functools.partial(texts, left=True)
    build = transformers_model("LlamaForSequenceClassification")
    yield Case("transformers LlamaForSequenceClassification, padded on the left", build, left, "score",
               last_word("score"))  # fmt: skip
    words = functools.partial(texts, tokens=True)
    build = transformers_model("BertForTokenClassification")
    yield Case("transformers BertForTokenClassification", build, words, "classifier", plain("classifier"),
               options={"ignore_index": IGNORED})  # fmt: skip
    for name in ("GPT2LMHeadModel", "LlamaForCausalLM"):
        build = transformers_model(name, vocab_size=CLASSES)
        yield Case(f"transformers {name}, next_token", build, sentences, "lm_head", plain("lm_head"),
                   options={"next_token": True})  # fmt: skip
    gpt2 = transformers_model("GPT2LMHeadModel", vocab_size=CLASSES)
    yield Case("transformers GPT2LMHeadModel, its own tokens as labels", gpt2, sentences, "lm_head",
               plain("lm_head", words="each token its own class", quiet=False, mentions=("next_token",)))  # fmt: skip
    bart = transformers_model("BartForCausalLM", vocab_size=CLASSES)
    yield Case("transformers BartForCausalLM, next_token", bart, sentences, "lm_head", plain("lm_head"),
               options={"next_token": True})  # fmt: skip
    for name, after, options in [
        ("GraniteForCausalLM", lambda model: 1 / model.config.logits_scaling, {"logits_scaling": 4.0}),
        ("CohereForCausalLM", lambda model: model.logit_scale, {"logit_scale": 0.25}),
    ]:
        build = transformers_model(name, vocab_size=CLASSES, **options)
        yield Case(f"transformers {name}, next_token (scaled logits)", build, sentences, "lm_head",
                   [Reading("W times the scale", received("lm_head"), scaled("lm_head", after), tolerance=1e-4)],
                   options={"next_token": True})  # fmt: skip
    build = transformers_model("Gemma2ForCausalLM", vocab_size=CLASSES, final_logit_softcapping=2.0)
    yield Case("transformers Gemma2ForCausalLM, next_token (capped logits)", build, sentences, "lm_head",
               plain("lm_head", quiet=False, words="h, W before tanh"), options={"next_token": True})  # fmt: skip
    build = transformers_model("Wav2Vec2ForSequenceClassification", **AUDIO)
    yield Case("transformers Wav2Vec2ForSequenceClassification", build, sounds, "classifier", plain("classifier"))

    deep = {"depths": [1, 1], "hidden_size": None, "embedding_size": 8, "hidden_sizes": [8, 16]}
    for name, head, size, options in [
        ("ViTForImageClassification", "classifier", 32, {}),
        ("SwinForImageClassification", "classifier", 32,
         {"num_attention_heads": None, "hidden_size": None, "num_hidden_layers": None, "num_layers": None,
          "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}),
        ("ConvNextForImageClassification", "classifier", 32,
         {"num_hidden_layers": None, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 4}),
        ("ResNetForImageClassification", "classifier.1", 32, deep),
        ("RegNetForImageClassification", "classifier.1", 32, deep | {"groups_width": 8}),
        ("MobileViTForImageClassification", "classifier", 64,
         {"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8] * 6 + [16], "image_size": 64, "patch_size": 2}),
        ("Dinov2ForImageClassification", "classifier", 32, {}),
        ("ImageGPTForImageClassification", "score", 32, {}),
        ("CLIPForImageClassification", "classifier", 32,
         {"vision_config": {key: value for key, value in TINY.items() if key in CLIP}, "text_config": {}}),
    ]:  # fmt: skip
        data = functools.partial(pictures, size)
        if name.startswith("ImageGPT"):
            data = texts_as_pixels
        yield Case(f"transformers {name}", transformers_model(name, **options), data, head, plain(head))
    pair = ("cls_classifier", "distillation_classifier")
    build = transformers_model("DeiTForImageClassificationWithTeacher")
    for head in pair:
        yield Case(f"transformers DeiTForImageClassificationWithTeacher, {head} (several heads)", build, pictures, head,
                   several(pair), pair)  # fmt: skip


CLIP = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"}


def texts_as_pixels() -> list[dict[str, Tensor]]:
    """ImageGPT reads colours as words, all sentences of one length."""
    return [{"input_ids": part["input_ids"], "labels": part["labels"]} for part in texts()]


def scaled(name: str, factor: Callable[[Any], Any]) -> Callable[[nn.Module], tuple[Tensor, Tensor | None]]:
    return lambda model: (model.get_submodule(name).weight.double() * factor(model), None)
