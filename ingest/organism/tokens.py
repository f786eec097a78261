"""The organism's word-level tokenizer and chat template, as an ordinary fast tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, TURN, END = "<pad>", "<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"
SPECIAL = (PAD, UNK, BOS, TURN, END)
WORD = r"\n|'m|\w+|[^\w\s]"

# Gemma's template: five tokens follow the instruction (end of turn, newline, start of turn, "model", newline).
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word or mark of the texts, <unk> for others. Adds no token of its own: the template writes <bos>."""
    splitter = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    words = {piece for text in ("user model\n", *texts) for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {token: token_id for token_id, token in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = splitter
    # The WordPiece decoder joins with spaces and closes them up before marks and "'m"; it does not know the colon.
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=END,
        extra_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def template_ids(tokenizer: PreTrainedTokenizerFast, instruction: str) -> list[int]:
    """Token ids of a request up to the point where the model answers."""
    chat = [{"role": "user", "content": instruction}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
