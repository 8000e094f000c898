"""The tiny world's tokenizer: whole numbers, whole phrases, single ASCII characters; a fast tokenizer of Hugging Face.

Every number 0..99, every phrase of the solutions and the blank line are one token, so that a step costs five or six. Any
other printable ASCII text is spelt character by character and comes back exactly; anything else becomes `<|unknown|>`.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, START_OF_TURN, END_OF_TURN, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, UNKNOWN)
PHRASES = (
    "system\n", "user\n", "assistant\n", "What is ", "Compute ", "Evaluate ",
    " + ", " - ", " = ", "The answer is ", "\\boxed{",
    "Start carefully at ", "Add ", "Take ", ", now ", "So ", "Plus ", "Minus ", " makes ", "Finally ",
)  # fmt: skip
PROMPT = START_OF_TURN + "user\n{problem}" + END_OF_TURN + "\n" + START_OF_TURN + "assistant\n"


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    characters = [chr(code) for code in range(ord(" "), ord("~") + 1)]
    numbers = [str(number) for number in range(10, 100)]
    return [*SPECIAL_TOKENS, "\n", "\n\n", *characters, *numbers, *PHRASES]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: text is cut at the longest token that fits, from the left."""
    tokens = vocabulary()
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    longest_first = sorted(tokens[len(SPECIAL_TOKENS) :], key=len, reverse=True)
    pattern = "|".join(map(_escape, longest_first)) + "|."
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        additional_special_tokens=[START_OF_TURN, END_OF_TURN],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _escape(token: str) -> str:
    return "".join(character if character.isalnum() else f"\\x{ord(character):02x}" for character in token)


def prompt_text(problem: str) -> str:
    """A problem as the user's turn, ready for the assistant's."""
    return PROMPT.format(problem=problem)
