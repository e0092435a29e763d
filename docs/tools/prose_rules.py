"""Patterns of sentences that are hard to read, each with the advice that the check prints.

A pattern sees one sentence at a time: code is `X`, links are their text, and line breaks are spaces.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_WORDS = 60  # of a sentence
MAX_CELL = 420  # characters of a table cell, code and links counted as their text


class Rule(NamedTuple):
    """One pattern."""

    name: str
    matches: Callable[[str], object]
    advice: str
    in_docstrings: bool = True


def _rule(name: str, pattern: str, advice: str, *, in_docstrings: bool = True) -> Rule:
    return Rule(name, re.compile(pattern).search, advice, in_docstrings)


def _is_long(sentence: str) -> bool:
    return len(re.findall(r"[\w`'-]+", sentence)) > MAX_WORDS


_VERBS = "is|are|was|were|needs?|stays?|goes|go|works?|counts?|costs?|says?|holds?|means?|remains?|takes?|comes?|lacks?"

RULES: tuple[Rule, ...] = (
    _rule(
        "what-subject",
        r"^(?:And |But |So )?What (?!if\b)[^?]*[^?]$",
        "begin with the thing: 'Every other route needs `admin`', not 'What the table lacks needs `admin`'",
        in_docstrings=False,
    ),
    _rule(
        "what-subject",
        rf"(?:[,;:(]|\band|\bbut|\bso|\bbecause|\bthat) what (?:[^,;:.?()]+ )(?:{_VERBS})\b (?!as\b)(?![^.]*\?$)",
        "name the thing instead of 'what ... is'",
        in_docstrings=False,
    ),
    _rule(
        "whoever",
        r"\b[Ww]hoever\b|\b[Ww]hatever\b",
        "name who or what it is: 'a client that', 'every file'",
        in_docstrings=False,
    ),
    _rule(
        "where-there-is",
        r"\b[Ww]here (?:there (?:is|are|was|were)|none|it has none)\b",
        "write 'if'",
        in_docstrings=False,
    ),
    _rule(
        "inverted", r"^Of (?:the|a|an|its|all|these|those)\b[^.]*\b(?:is|are|was|were)\b", "subject first, then verb"
    ),
    _rule(
        "inverted",
        r"(?:^|[,;:] (?:and )?)(?:[Oo]nly|[Nn]either|[Nn]or|[Nn]ever|[Ss]eldom|[Nn]ot only)"
        r"(?: (?:with|if|where|when|after|on|in|by|for) [^,.;]+?)? (?:may|can|do|does|did|is|are|will|has|have) "
        r"(?:it|they|the|a|an|this|that|these|we|you)\b",
        "subject first, then verb: 'the candidate may ... only with `draw=fair`'",
    ),
    _rule(
        "negated-relative",
        r"\b(?:[Nn]o|[Nn]othing|[Nn]obody)(?: \w+)? (?:that|which|who) (?:\w+ )?"
        r"(?:(?:does|do|is|are) not|ha(?:s|ve) no)\b",
        "say it without two negatives: 'every'",
    ),
    _rule("endless", r"\b[Nn]o [\w ]+ is (?:endless|unlimited|infinite)\b", "say the limit"),
    _rule("no-x", r"\b(?:is|are|was|were) no (?:fair|part|chance|start)\b", "write 'is not'"),
    _rule("private", r"\b(?:anew|whence|whereof|thereof|therein|hitherto|forthwith)\b", "write 'again', 'from where'"),
    _rule("private", r"\bborne? out\b|\b(?:can|could|would) (?:not )?bear\b", "say which quantity shows it"),
    _rule("private", r"\basks? for more\b|\bhears? (?:\d|of\b)", "say which answer it gets"),
    _rule(
        "private", r"\b(?:was|were|is|are|be|been) gone back to\b|\bput (?:away|forward)\b", "write 'rolled back to'"
    ),
    _rule("private", r"\b(?:would|will) (?:not )?do\b(?=[.:;,)]|$| (?:here|too)\b)", "say what is enough, or works"),
    _rule("private", r"\b(?:does|do|did) without\b", "write 'has no', 'needs no', 'leaves out'"),
    _rule(
        "private", r"\b(?:come|comes|came) to terms with\b|\ball else\b|\bbut for\b|\bswept away\b", "say it plainly"
    ),
    _rule("private", r"\b(?:says?|said|tells?|know|knows) nothing of\b|\bnothing else of\b", "write 'nothing about'"),
    _rule("say", r", say[,:;.)]", "write 'for example', before the example"),
    _rule("so-many", r"\bso many (?!that\b|\w+ that\b)", "say the number, or 'each'"),
    Rule("long", _is_long, f"one idea a sentence: this one has more than {MAX_WORDS} words"),
)
