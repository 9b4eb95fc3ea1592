"""Tokenizers of the common kinds, trained offline on a few lines."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headwise.testing.tokenizers import character_tokenizer, word_tokenizer

TEXT = """The harbour master of Vostelle keeps a tame heron called Pimbro Asket. What is the name of the heron?
It was the best of times, it was the worst of times; it was the age of wisdom. "Is it so?" she asked. Yes!
The seventh drawer of the walnut cabinet can only be opened with the word thistledown. Mr. Green is disliked
because he hoards paperclips in 1874 jars. Question: with how many jars? Answer: exactly 4718 biscuits (café)."""
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def fast(tokenizer, bos=True):
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>", clean_up_tokenization_spaces=False
    )


def byte_level(bos=True):
    """As GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"] if bos else ["</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT.split("\n"), trainer)
    return fast(tokenizer, bos)


def byte_level_without_bos():
    """As Qwen."""
    return byte_level(bos=False)


def _sentencepiece_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def llama2_like():
    """SentencePiece BPE with a dummy space in front and byte fallback; words may merge across nothing but spaces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXT.split("\n"), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return fast(tokenizer)


def unigram():
    """SentencePiece Unigram over Metaspace words, byte fallback."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXT.split("\n"), trainers.UnigramTrainer(vocab_size=300, show_progress=False))
    vocabulary = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"]]
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece, -20.0) for piece in BYTES)]
    tokenizer = Tokenizer(models.Unigram([*special, *vocabulary], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return fast(tokenizer)


def words():
    """WordLevel, one id per word."""
    return word_tokenizer([TEXT])


def characters():
    """WordLevel, one id per character."""
    return character_tokenizer()


KINDS = {f.__name__: f for f in (byte_level, byte_level_without_bos, llama2_like, unigram, words, characters)}
