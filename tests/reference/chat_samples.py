# SPDX-License-Identifier: Apache-2.0
"""Random conversations and random chat templates, and what transformers makes of them: for make_chat.py and tests/peers."""

from __future__ import annotations

import datetime
import random
import re

from transformers.utils import chat_template_utils

TIME = 1783900000  # a second of 2026, on a clock on the wall
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "unk_token": "<unk>"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


class Clock(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: object = None) -> datetime.datetime:  # noqa: ARG003
        return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=TIME)


def render(case: dict) -> dict:
    """What transformers makes of a case: {"text": ...} or {"error": ...}."""
    chat_template_utils.datetime = Clock
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [case["messages"]],
            tools=case.get("tools"),
            documents=case.get("documents"),
            chat_template=case["template"],
            add_generation_prompt=not case.get("is_whole", False),
            **TOKENS,
            **case.get("variables", {}),
        )
    except Exception as error:  # noqa: BLE001 - whatever a template does wrong
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": texts[0]}


# What names an object by its address, lists of texts that are marked as escaped, and ranges with a step.
OBJECTS = re.compile(r"object at 0x|<(bound|built-in) |<LoopContext|<Macro|<class |<generator|Markup\(|range\(", re.IGNORECASE)


def is_peculiar(case: dict, made: dict, error: str = "") -> bool:
    """Whether a case is one of those where Penstock means to differ from what Python made of it. error: Penstock's own."""
    # A slice of a constant that has none is undefined in Python, that of a variable an error; whole numbers have any
    # size; what is computed lazily and never looked at never fails.
    own = ("a slice of", "64 bits", "cannot be iterated over", "is printed", "is no text", "cannot be a key", "too wide")
    if OBJECTS.search(made.get("text", "")) or any(text in error for text in own):
        return True
    # Ranges with a step are not printed. A name that is set further down hides one further up from blocks within.
    template = case["template"]
    hidden = re.search(r"set (x|y|i|s|xs|a|b|ns) ", template) and re.search(r"generation|macro|call|filter|with|set x|for", template)
    escaped = re.search(r"\| *(e|safe)\b", template)  # a text that is escaped is not marked as such here
    return bool("range(" in template and "text" not in made or hidden or escaped)


class Conversations:
    """Random conversations, with tools, parts and reasoning."""

    WORDS = ("river", "Straße", "ΣΊΣΥΦΟΣ", "水", "\U0001f600", "don't", '"quoted"', "<|im_end|>", "a\\b", "\t", "\n\n", "")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        """A few words between white space."""
        words = [self.random.choice(self.WORDS) for _ in range(self.random.randint(0, 5))]
        edge = self.random.choice(("", "", " ", "\n", " \n"))
        thought = self.random.choice(("", "", "", "<think>hm</think>\n\n"))
        return edge + thought + self.random.choice((" ", " ", "\n")).join(words) + edge

    def value(self, depth: int = 0) -> object:
        """JSON of any kind."""
        kind = self.random.randrange(8 if depth < 2 else 6)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
        if kind == 7:
            return {self.text(): self.value(depth + 1) for _ in range(self.random.randint(0, 3))}
        return (None, True, self.random.randint(-5, 99), self.random.uniform(-3, 3), self.text(), 1e22)[kind]

    def tool(self) -> dict:
        """A function's description."""
        names = ["city", "days", "when"][: self.random.randint(0, 3)]
        types = ("string", "integer", "boolean", "array")
        properties = {n: {"type": self.random.choice(types), "description": self.text()} for n in names}
        parameters = {"type": "object", "properties": properties, "required": names[:1]}
        name = self.random.choice(("look_up", "get_weather"))
        return {"type": "function", "function": {"name": name, "description": self.text(), "parameters": parameters}}

    def message(self, role: str) -> dict:
        """One of the kinds that are met."""
        content: object = self.text()
        if self.random.random() < 0.1:
            content = [{"type": "text", "text": self.text()} for _ in range(self.random.randint(1, 2))]
        made = {"role": role, "content": content}
        if role == "assistant" and self.random.random() < 0.3:
            arguments = {"city": self.value(), "days": self.value()}
            call = {"name": "look_up", "arguments": arguments}
            made["tool_calls"] = [{"id": "call12345", "type": "function", "function": call}]
            if self.random.random() < 0.5:
                made["content"] = None
        if role == "assistant" and self.random.random() < 0.2:
            made["reasoning_content"] = self.text()
        if role == "tool":
            made["tool_call_id"] = "call12345"
        return made

    def case(self) -> dict:
        """All but a template."""
        roles = ["system"] if self.random.random() < 0.4 else []
        for _ in range(self.random.randint(1, 4)):
            roles += ["user", "assistant"]
            if self.random.random() < 0.2:
                roles += ["tool", "assistant"]
        if self.random.random() < 0.6:
            roles.pop()
        if self.random.random() < 0.05:
            self.random.shuffle(roles)
        made = {"messages": [self.message(role) for role in roles], "is_whole": self.random.random() < 0.3}
        if self.random.random() < 0.3:
            made["tools"] = [self.tool() for _ in range(self.random.randint(1, 2))]
        if self.random.random() < 0.1:
            made["documents"] = [{"title": self.text(), "text": self.text()}]
        if self.random.random() < 0.2:
            made["variables"] = {"enable_thinking": self.random.random() < 0.5}
        return made


VARIABLES = {
    "i": 7,
    "zero": 0,
    "f": 2.5,
    "s": " Héllo Wörld-x ",
    "word": "abc",
    "empty": "",
    "nothing": None,
    "yes": True,
    "no": False,
    "xs": [3, 1, 2, 1],
    "names": ["b", "A", "a", "ß"],
    "rows": [{"k": "x", "v": 1}, {"k": "Y", "v": 2.0}, {"k": "x", "v": None}],
    "d": {"b": 1, "a": [1, {"c": None}], "items": "own", "Z": "q'\"\n"},
}


class Templates:
    """Random templates over VARIABLES: nothing that a model would have, but much of what the language has."""

    NAMES = (*VARIABLES, "missing", "messages")
    TESTS = ("defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean", "true",
             "false", "integer", "float", "odd", "even", "lower", "upper", "not defined", "not none", "equalto(1)",
             "== 'abc'", "in [1, 2]", "divisibleby 2", "sameas true", "gt 1", "callable")  # fmt: skip
    FILTERS = ("trim", "length", "upper", "lower", "title", "capitalize", "join", "join(', ')", "first", "last", "default('D')",
               "d('D', true)", "list", "map('upper') | list", "map(attribute='k') | list", "select('string') | list",
               "reject('none') | list", "selectattr('v') | list", "selectattr('k', 'equalto', 'x') | list",
               "rejectattr('v', 'none') | list", "string", "int", "float", "replace('l', 'L')", "replace('l', 'L', 1)",
               "tojson", "tojson(indent=2)", "items | list", "dictsort", "indent", "indent(2, true)", "safe", "unique | list",
               "sort", "sort(reverse=true)", "sort(attribute='k')", "reverse | list", "reverse", "abs", "round", "round(1)", "e",
               "count", "sum", "min", "max", "wordcount", "batch(2) | list", "int(default=5)", "truncate(5)",
               "truncate(7, true)", "map('int') | list", "map('default', 'x') | join('-')", "sum(attribute='v')",
               "groupby('k') | list", "center(11)", "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "select", "length",
               "map('length') | sum", "dictsort(by='value')", "dictsort(reverse=true)", "float(1.5)", "unique | first",
               "attr('v')", "attr('upper')", "round(method='floor')", "round(1, 'ceil')", "format(1, 2)")  # fmt: skip
    METHODS = ("strip()", "lstrip()", "rstrip()", "strip('x ')", "split()", "split('l')", "split('l', 1)", "split(' ')",
               "rsplit('l', 1)", "rsplit(None, 1)", "split(None, 1)", "rsplit()", "rsplit(' ', 2)", "startswith('H')", "startswith(('a', ' H'))", "endswith('x ')", "upper()",
               "lower()", "title()", "capitalize()", "replace('l', 'LL')", "find('l')", "rfind('l')", "count('l')", "isdigit()",
               "isalpha()", "isupper()", "islower()", "isspace()", "isalnum()", "get('a')", "get('q', 'dflt')", "get('b')",
               "items()", "keys()", "values()", "join(['1', '2'])", "splitlines()", "zfill(9)", "center(9)", "ljust(9)",
               "rjust(9, '*')", "removeprefix('a')", "removesuffix('c')", "partition('l')", "rpartition('l')", "swapcase()",
               "index(1)", "count(1)", "items() | list", "keys() | list", "append(1)", "update({})", "pop()", "copy()",
               "format(1)", "index('b')")  # fmt: skip
    LITERALS = ("1", "2", "0", "-1", "3.5", "1e3", "'abc'", "'x'", "\"it's\"", "''", "'\\n'", "'\\u00e9\\x41'", "'%s-%d' % ('a', 3)",
                "true", "False", "none", "None", "[1, 2]", "[]", "(1, 'b')", "(1,)", "()", "{'a': 1, 'b': [2]}", "{}",
                "range(3)", "range(4, 0, -2) | list", "dict(a=1, b='c')", "namespace(a=1).a", "'{}-{}'.format(1, 'x')",
                "'%5.2f|%03d|%x' % (2.345, 7, 255)", "'{0:>4}|{1:.1f}'.format('a', 2.25)", "'a' 'b'", "1_000", "0x1f",
                "strftime_now('%d %B %Y %H:%M:%S %j %A')", "[1, 'a', none, true, 1.5, [{}]]")  # fmt: skip
    KEYS = ("0", "1", "-1", "'a'", "'k'", "'b'", "'missing'", "'items'", "9", ":2", "1:", "::-1", "-2:", "1:-1", "::2", ":", "3:1:-1")
    ATTRIBUTES = ("a", "b", "k", "v", "role", "content", "items", "missing", "Z", "0", "__class__", "_x")
    OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or", "~", "+")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def expression(self, depth: int = 0) -> str:
        """An expression, of at most a few levels."""
        pick = self.random.choice
        deep = depth < 3
        kind = self.random.randrange(12) if deep else self.random.randrange(3)
        if kind == 0:
            return pick(self.LITERALS)
        if kind <= 2:
            return pick(self.NAMES)
        inner = self.expression(depth + 1)
        if kind <= 4:
            return f"{inner} | {pick(self.FILTERS)}" if self.random.random() < 0.5 else f"({inner}) | {pick(self.FILTERS)}"
        if kind == 5:
            return f"({inner}).{pick(self.METHODS)}"
        if kind == 6:
            return f"({inner})[{pick(self.KEYS)}]"
        if kind == 7:
            return f"({inner}).{pick(self.ATTRIBUTES)}"
        if kind == 8:
            return f"({inner}) is {pick(self.TESTS)}"
        if kind == 9:
            return f"{inner} if {self.expression(depth + 1)} else {self.expression(depth + 1)}"
        if kind == 10:
            return pick(("not ", "-", "+", "- ")) + inner
        left, right = (inner, self.expression(depth + 1))
        if self.random.random() < 0.6:
            left, right = f"({left})", f"({right})"
        more = f" {pick(self.OPERATORS)} {pick(self.LITERALS)}" if self.random.random() < 0.2 else ""
        return f"{left} {pick(self.OPERATORS)} {right}{more}"

    def tag(self, content: str) -> str:
        """A statement's tag, with any signs."""
        begin = self.random.choice(("{%", "{%", "{%-", "{%+"))
        end = self.random.choice(("%}", "%}", "-%}", "+%}"))
        return f"{begin} {content} {end}"

    def space(self) -> str:
        """White space and letters between tags."""
        return self.random.choice(("", "", " ", "\n", "  \n  ", "x", " y ", "\n\n", "\t", "{", "%}", "{# c #}", "{#- c -#}\n", "é"))

    def printed(self) -> str:
        """An output."""
        return self.random.choice(("{{ %s }}", "{{- %s }}", "{{ %s -}}", "{{%s}}")) % self.expression()

    def loop(self, depth: int) -> str:
        """A loop over what can be gone through, mostly."""
        pick = self.random.choice
        target, items = pick((("x", "xs"), ("x", "names"), ("x", "word"), ("k, w", "d.items()"), ("x", "rows"), ("x", "[]"),
                              ("x", "range(3)"), ("x", self.expression(2)), ("x", "messages"), ("k, w", "d | dictsort"),
                              ("x", "rows | selectattr('v')"), ("x", "d"), ("x", "missing"), ("(k, w)", "d | items")))  # fmt: skip
        condition = pick(("", "", "", " if x is defined", " if x", " if not loop"))
        attribute = pick(("index", "index0", "first", "last", "length", "previtem", "nextitem", "revindex", "depth", "cycle(1, 2)",
                          "changed(x)", "missing"))  # fmt: skip
        jump = pick(("", "", "", self.tag("if loop.index > 2") + self.tag(pick(("break", "continue"))) + self.tag("endif")))
        other = self.tag("else") + self.body(depth + 1) if self.random.random() < 0.3 else ""
        inside = "{{ loop.%s }}" % attribute + self.space() + jump + self.body(depth + 1)
        return self.tag(f"for {target} in {items}{condition}") + inside + other + self.tag("endfor")

    def statement(self, depth: int) -> str:
        """A statement."""
        pick = self.random.choice
        kind = self.random.randrange(11)
        if kind <= 1:
            other = self.tag(f"elif {self.expression(1)}") + self.body(depth + 1) if self.random.random() < 0.3 else ""
            other += self.tag("else") + self.body(depth + 1) if self.random.random() < 0.5 else ""
            return self.tag(f"if {self.expression(1)}") + self.body(depth + 1) + other + self.tag("endif")
        if kind <= 3:
            return self.loop(depth)
        if kind <= 5:
            return self.tag(f"set {pick(('x', 'y', 'i', 's', 'xs'))} = {self.expression(1)}")
        if kind == 6:
            return self.tag("set x") + self.body(depth + 1) + self.tag("endset") + "[{{ x }}]"
        if kind == 7:
            change = self.tag(f"set ns.a = ns.a ~ {self.expression(2)}")
            loop = self.tag("for q in xs") + change + self.tag("endfor")
            return self.tag("set ns = namespace(a='')") + loop + "{{ ns.a }}"
        if kind == 8:
            use = pick(("{{ m(1) }}", "{{ m(i, b='q') }}", "{{ m() }}", "{{ m(1, 2, 3) }}", "{{ m(c=1) }}", "{{ m(s) | trim }}"))
            return self.tag("macro m(a, b=word)") + "<{{ a }}{{ b }}>" + self.body(depth + 1) + self.tag("endmacro") + use
        if kind == 9:
            return pick((
                self.tag("filter upper") + self.body(depth + 1) + self.tag("endfilter"),
                self.tag("with x = 1, y = s") + self.body(depth + 1) + self.tag("endwith"),
                self.tag("generation") + self.body(depth + 1) + self.tag("endgeneration"),
                self.tag("raw") + "{{ x }}" + self.space() + self.tag("endraw"),
                self.tag("macro c(a)") + "({{ caller(a) }})" + self.tag("endmacro") + self.tag("call(z) c(i)")
                + "{{ z }}" + self.body(depth + 1) + self.tag("endcall"),
                self.tag("set x | trim | upper") + self.body(depth + 1) + self.tag("endset") + "{{ x }}",
            ))  # fmt: skip
        return self.tag("set a, b = (1, word)") + "{{ a }}{{ b }}"

    def body(self, depth: int = 0) -> str:
        """Text, outputs and statements."""
        parts = []
        for _ in range(self.random.randint(1, 3)):
            parts.append(self.space())
            parts.append(self.statement(depth) if depth < 2 and self.random.random() < 0.4 else self.printed())
        return "".join(parts) + self.space()

    def case(self, whole: bool = True) -> dict:
        """A case for render(); not whole: of one expression."""
        template = self.body() if whole else "{{ " + self.expression() + " }}"
        return {"template": template, "messages": [{"role": "user", "content": "c"}], "variables": VARIABLES}
