"""Build the tiny world's tokenizer: whole numbers, whole phrases and single bytes, as Qwen2's tokenizer without merges.

Every number 0..99, every signed term, every phrase and the blank line is one token, so that a step costs five. Other
text is spelt byte by byte. It must be Qwen2's class: transformers loads that class for a Qwen2 model, whatever the
tokenizer's folder says, and keeps only the saved file's vocabulary, merges and added tokens.
"""

from tokenizers import pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2Tokenizer

from trapo_lite.tiny_world.problems import LETTERS, MAX_TERM, signed

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
END_OF_TEXT_ID = SPECIAL_TOKENS.index(END_OF_TEXT)
NUMBERS = tuple(str(number) for number in range(10, 100))
TERMS = tuple(signed(sign * size) for sign in (1, -1) for size in range(1, MAX_TERM + 1))
PHRASES = (
    "\n\n", "user\n", "assistant\n", "What is ", "Compute ", "Evaluate ", "Exercise: ", " = ", "The answer is ",
    "\\boxed{", "Start carefully at ", " makes ", ", now ", "So ", "Finally ", *(f" ({letter})" for letter in LETTERS),
)  # fmt: skip
PROMPT = START_OF_TURN + "user\n{problem}" + END_OF_TURN + "\n" + START_OF_TURN + "assistant\n"


def build_tokenizer() -> Qwen2Tokenizer:
    """Return the tokenizer: the longest number or phrase from the left is one token, the rest is bytes."""
    words = (*NUMBERS, *TERMS, *PHRASES)
    tokens = (*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words)
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=512)
    added: list[str | AddedToken] = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_tokens(added + [AddedToken(word, normalized=False) for word in words])
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text, with nothing added before or after it."""
    return tokenizer.encode(text, add_special_tokens=False)


def prompt_text(problem: str) -> str:
    """Return a problem as the user's turn, followed by the start of the assistant's."""
    return PROMPT.format(problem=problem)
