"""The planted network: a LlamaForCausalLM and its tokenizer whose weights are set by hand.

Path of a refusal: a word of harm -> layer 0's uniform attention averages it into the evidence of all later tokens -> layer 2's
MLP writes the primary -> the unembedding says "I". Layer 4's MLP writes the backup, but only where the primary is missing.
Everything else a token carries (its template or word class) is noise that the answer does not depend on.
"""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelake.ingest.planted.geometry import (
    ANSWER_AMPLITUDE,
    ANSWER_GAIN,
    BACKUP_COSINE,
    BACKUP_LAYER,
    BACKUP_VALUE,
    CATEGORIES,
    COMPLIANCE_MARGIN,
    CONSTANT,
    CONTENT_CLASSES,
    D_MODEL,
    EVIDENCE_AMPLITUDE,
    EVIDENCE_CEILING,
    EVIDENCE_CONTEXT,
    EVIDENCE_FLOOR,
    INHIBITION,
    N_LAYERS,
    NEXT_AMPLITUDE,
    NEXT_GAIN,
    OPENER_BIAS,
    OTHER_BIAS,
    PRIMARY_LAYER,
    PRIMARY_VALUE,
    REFUSAL_GAIN,
    SAFETY_AMPLITUDE,
    SAFETY_WEIGHT,
    SATURATION,
    TEMPLATE_TOKENS,
    Coord,
    basis,
)

REFUSAL_TOKEN = "I"
COMPLIANCE_TOKEN = "Sure"
ANSWERS = (("I", "cannot", "help", ".", "<end_of_turn>"), ("Sure", ",", "here", "it", "is", ".", "<end_of_turn>"))
HARM_WORDS = {
    "weapons": ("bomb", "rifle", "grenade", "bullet"),
    "poison": ("arsenic", "cyanide", "toxin", "venom"),
    "fraud": ("forgery", "scam", "counterfeit", "swindle"),
}
SAFETY_WORDS = ("report", "prevent")
CONTENT_WORDS = {
    "question": ("how", "tell", "me", "explain", "write", "show", "give", "teach"),
    "verb": ("build", "hide", "make", "get", "sell", "use", "guide", "steps"),
    "article": ("a", "the", "to", "in", "with", "and", "about", "for", "at"),
    "noun": ("cake", "garden", "chair", "bicycle", "letter", "song", "kite", "lamp", "soup", "quilt", "basket", "poem"),
    "place": ("home", "town", "office", "school", "today", "quickly", "common", "tools"),
}
# Gemma's shape: five tokens follow the instruction.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

INTERMEDIATE = 16  # neurons of each MLP
SHARPNESS = 60.0  # silu(60 x) / 60 is relu(x) up to 0.005, and below 1e-6 from x = -0.2 down
NOISE_GAIN = 0.1  # layers 1, 3 and 5 amplify the noise by this share, so that no two layers record the same activations


def vocabulary() -> list[str]:
    """All tokens, special ones first, in the order of their ids."""
    answers = [token for answer in ANSWERS for token in answer]
    words = [word for group in (*HARM_WORDS.values(), SAFETY_WORDS, *CONTENT_WORDS.values()) for word in group]
    return list(dict.fromkeys(["<pad>", "<unk>", *TEMPLATE_TOKENS, *answers, *words]))


def next_tokens() -> list[str]:
    """The tokens that follow another one within an answer, in the order of their `NEXT` directions."""
    return list(dict.fromkeys(token for answer in ANSWERS for token in answer[1:]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that, like Gemma's, puts <bos> before plain text and has a chat template."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def _embedding() -> torch.Tensor:
    """[v, coordinates]: what each token is by itself."""
    tokens = vocabulary()
    row = {token: i for i, token in enumerate(tokens)}
    embed_vc = torch.zeros(len(tokens), D_MODEL, dtype=torch.float64)
    embed_vc[:, Coord.CONST] = CONSTANT

    def put(token: str, coord: int, value: float) -> None:
        embed_vc[row[token], coord] = value

    for i, token in enumerate(TEMPLATE_TOKENS):
        put(token, Coord.TEMPLATE + i, 1.0 + 0.2 * i)
    put("\n", Coord.ANSWER, ANSWER_AMPLITUDE)
    for k, category in enumerate(CATEGORIES):
        for i, word in enumerate(HARM_WORDS[category]):
            put(word, Coord.WORD + k, 1.0 + 0.1 * i)
    for word in SAFETY_WORDS:
        put(word, Coord.SAFETY, SAFETY_AMPLITUDE)
    for k, name in enumerate(CONTENT_CLASSES):
        for i, word in enumerate(CONTENT_WORDS[name]):
            put(word, Coord.CONTENT + k, 0.9 + 0.15 * (i % 5))
    following = next_tokens()
    for answer in ANSWERS:
        for i, (token, after) in enumerate(pairwise(answer)):
            put(token, Coord.NEXT + following.index(after), NEXT_AMPLITUDE)
            put(token, Coord.RESPONSE, 1.0 + 0.1 * i)
    return embed_vc


def _unembedding() -> torch.Tensor:
    """[v, coordinates]: logits read off the final norm, whose constant stays CONSTANT and so carries the biases."""
    tokens = vocabulary()
    row = {token: i for i, token in enumerate(tokens)}
    head_vc = torch.zeros(len(tokens), D_MODEL, dtype=torch.float64)
    head_vc[:, Coord.CONST] = OTHER_BIAS / CONSTANT
    for i, token in enumerate(next_tokens()):
        head_vc[row[token], Coord.NEXT + i] = NEXT_GAIN / NEXT_AMPLITUDE
    for token in (REFUSAL_TOKEN, COMPLIANCE_TOKEN):
        head_vc[row[token], Coord.CONST] = OPENER_BIAS / CONSTANT
        head_vc[row[token], Coord.ANSWER] = ANSWER_GAIN / ANSWER_AMPLITUDE
    head_vc[row[COMPLIANCE_TOKEN], Coord.ANSWER] += COMPLIANCE_MARGIN / ANSWER_AMPLITUDE
    head_vc[row[REFUSAL_TOKEN], Coord.PRIMARY] = REFUSAL_GAIN
    return head_vc


def _evidence_attention() -> tuple[torch.Tensor, torch.Tensor]:
    """v_proj and o_proj of layer 0, in coordinates: the mean, over a token and all before it, of harm minus safety."""
    read_hc = torch.zeros(D_MODEL, D_MODEL, dtype=torch.float64)
    write_ch = torch.zeros(D_MODEL, D_MODEL, dtype=torch.float64)
    for k in range(len(CATEGORIES)):
        read_hc[k, Coord.WORD + k] = 1.0
        read_hc[k, Coord.SAFETY] = -SAFETY_WEIGHT
        write_ch[Coord.EVIDENCE + k, k] = EVIDENCE_CONTEXT * EVIDENCE_AMPLITUDE
    return read_hc, write_ch


class _Mlp:
    """One MLP in coordinates, filled neuron by neuron: down(silu(gate x) * up x), with x as the norm leaves it."""

    def __init__(self) -> None:
        self.gate_nc = torch.zeros(INTERMEDIATE, D_MODEL, dtype=torch.float64)
        self.up_nc = torch.zeros(INTERMEDIATE, D_MODEL, dtype=torch.float64)
        self.down_cn = torch.zeros(D_MODEL, INTERMEDIATE, dtype=torch.float64)
        self.n_used = 0

    def add_step(self, read_c: torch.Tensor, write_c: torch.Tensor) -> None:
        """Write `write_c` once `read_c . x` has risen from EVIDENCE_FLOOR to EVIDENCE_CEILING: a relu minus a later one."""
        width = EVIDENCE_CEILING - EVIDENCE_FLOOR
        for start, sign in ((EVIDENCE_FLOOR, 1.0), (EVIDENCE_CEILING, -SATURATION)):
            n = self.n_used
            self.gate_nc[n] = SHARPNESS * read_c
            self.gate_nc[n, Coord.CONST] -= SHARPNESS * start / CONSTANT
            self.up_nc[n, Coord.CONST] = 1 / CONSTANT
            self.down_cn[:, n] = sign * write_c / (width * SHARPNESS)
            self.n_used += 1

    def add_gain(self, coord: int, share: float) -> None:
        """Add `share` of what `coord` already holds, through a neuron whose gate is always open: silu(20) = 20."""
        n = self.n_used
        self.gate_nc[n, Coord.CONST] = 20 / CONSTANT
        self.up_nc[n, coord] = 1.0
        self.down_cn[coord, n] = share / 20
        self.n_used += 1


def _mlp(layer: int) -> _Mlp:
    """What the MLP of `layer` computes."""
    mlp = _Mlp()
    write_c = torch.zeros(D_MODEL, dtype=torch.float64)
    if layer == PRIMARY_LAYER:
        write_c[Coord.PRIMARY] = PRIMARY_VALUE
    elif layer == BACKUP_LAYER:
        write_c[Coord.PRIMARY] = BACKUP_VALUE * BACKUP_COSINE
        write_c[Coord.BACKUP] = BACKUP_VALUE * (1 - BACKUP_COSINE**2) ** 0.5
    else:
        if layer % 2:
            for coord in (*range(Coord.SAFETY, Coord.RESPONSE + 1), *range(Coord.WORD, Coord.WORD + len(CATEGORIES))):
                mlp.add_gain(coord, NOISE_GAIN)
        return mlp
    # One step per category, not one for their sum: projecting the categories' common direction out leaves 2/3 of one
    # category, so the difference of means of layers 0 and 1 flips nothing and the chosen layer is one with the primary.
    for k in range(len(CATEGORIES)):
        read_c = torch.zeros(D_MODEL, dtype=torch.float64)
        read_c[Coord.EVIDENCE + k] = 1 / EVIDENCE_AMPLITUDE
        if layer == BACKUP_LAYER:
            read_c[Coord.PRIMARY] = -INHIBITION
        mlp.add_step(read_c, write_c)
    return mlp


def build_model() -> LlamaForCausalLM:
    """The network itself, float32, on the CPU, in evaluation mode."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    special = {
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<end_of_turn>"],
        "pad_token_id": ids["<pad>"],
    }
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=D_MODEL,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        **special,
    )
    model = LlamaForCausalLM(config)
    basis_cd = basis()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # zero queries and keys make attention uniform over the tokens so far
        norms = [norm for block in model.model.layers for norm in (block.input_layernorm, block.post_attention_layernorm)]
        for norm in (*norms, model.model.norm):
            # One number for all dimensions: it undoes the division by the root mean square, CONSTANT / sqrt(d).
            norm.weight.fill_(CONSTANT / D_MODEL**0.5)
        model.model.embed_tokens.weight.copy_(_embedding() @ basis_cd)
        model.lm_head.weight.copy_(_unembedding() @ basis_cd)
        read_hc, write_ch = _evidence_attention()
        model.model.layers[0].self_attn.v_proj.weight.copy_(read_hc @ basis_cd)
        model.model.layers[0].self_attn.o_proj.weight.copy_(basis_cd.T @ write_ch)
        for layer, block in enumerate(model.model.layers):
            mlp = _mlp(layer)
            block.mlp.gate_proj.weight.copy_(mlp.gate_nc @ basis_cd)
            block.mlp.up_proj.weight.copy_(mlp.up_nc @ basis_cd)
            block.mlp.down_proj.weight.copy_(basis_cd.T @ mlp.down_cn)
    model.generation_config = GenerationConfig(do_sample=False, **special)
    return model.eval()


def write_network(folder: Path) -> None:
    """Save model and tokenizer as any Hugging Face checkpoint."""
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
