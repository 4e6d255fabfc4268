# SPDX-License-Identifier: Apache-2.0
"""All the small changes of a C file that mutate.py tries: a deterministic list.

    negate    a condition, or one operand of && or ||, is negated
    drop      a call or an assignment is left out
    swap      two statements that follow each other change places
    replace   an enumerator becomes its neighbour, in a return, an assignment or an argument; a returned
              0 becomes -EIO, an error or OP_PARKED becomes 0; true becomes false, and the reverse

Assertions, what is traced and what is logged stay as they are: they change nothing of what the code does.
No line moves, so that assertions name the lines of the source.
"""
import re
from collections import Counter

TOKEN = re.compile(r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<directive>^\#(?:[^\n]*\\\n)*[^\n]*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<literal>\d[\w.]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<sign>->|\+\+|--|<<=|>>=|[-+*/%&|^=!<>]=|&&|\|\||<<|>>|\.\.\.|.)
""", re.X | re.S | re.M)

TYPES = {"const", "static", "struct", "enum", "union", "unsigned", "signed", "int", "char", "bool", "void",
         "long", "short", "size_t", "ssize_t"}
UNTOUCHED = {"assert", "image_log", "image_trace", "image_trace_op", "waitq_init"}
ASSIGNING = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>=", "++", "--"}
OPENING, CLOSING = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}

# Of a statement, in the name of a mutant.
SHOWN = 70


class Statement:
    def __init__(self, kind, first, end):
        self.kind, self.first, self.end = kind, first, end  # tokens [first, end)


class File:
    def __init__(self, text, neighbours):
        self.text = text
        self.neighbours = neighbours
        self.tokens = [m for m in TOKEN.finditer(text) if m.lastgroup not in ("space", "directive")]
        self.words = [m[0] for m in self.tokens]
        self.closing = self._match()
        self.found = []  # (function, kind, (start, end, new) edits)
        self._functions()

    def _match(self):
        closing, open_ones = {}, []
        for i, word in enumerate(self.words):
            if word in OPENING:
                open_ones.append(i)
            elif word in CLOSING:
                closing[open_ones.pop()] = i
        return closing

    def _functions(self):
        i = 0
        while i < len(self.words):
            if self.words[i] == "{" and self.words[i - 1] == ")":
                opening = next(o for o, c in self.closing.items() if c == i - 1)
                self.function = self.words[opening - 1]
                self.returns_bool = self.words[opening - 2] == "bool"
                self._statement(i)
                i = self.closing[i]
            elif self.words[i] in OPENING and self.words[i] != "(":
                i = self.closing[i]
            i += 1

    # ---- Statements

    def _statement(self, i):
        word = self.words[i]
        if word == "{":
            return self._block(i)
        if word in ("if", "while", "switch", "for") or "FOREACH" in word:
            return self._compound(i)
        if word == "do":
            body = self._statement(i + 1)
            self._condition(body.end + 2, self.closing[body.end + 1])
            return Statement("compound", i, self.closing[body.end + 1] + 2)
        if word in ("case", "default"):
            while self.words[i] != ":":
                i += 1
            inner = self._statement(i + 1)
            return Statement("label", i, inner.end)
        return self._simple(i)

    def _block(self, i):
        end = self.closing[i]
        at, before = i + 1, None
        while at < end:
            now = self._statement(at)
            if before and before.kind in ("plain", "compound") and now.kind in ("plain", "compound"):
                self._add("swap", self._cut(before), self._cut(now))
            before, at = now, now.end
        return Statement("block", i, end + 1)

    def _compound(self, i):
        close = self.closing[i + 1]
        if self.words[i] == "for":
            parts = self._split(i + 2, close, ";")
            if len(parts) == 3 and parts[1][0] < parts[1][1]:
                self._condition(*parts[1])
        elif self.words[i] in ("if", "while"):
            self._condition(i + 2, close)
        body = self._statement(close + 1)
        end = body.end
        if self.words[i] == "if" and end < len(self.words) and self.words[end] == "else":
            end = self._statement(end + 1).end
        return Statement("compound", i, end)

    def _simple(self, i):
        end = i
        while self.words[end] != ";":
            end = self.closing[end] + 1 if self.words[end] in OPENING else end + 1
        kind = self._kind(i, end)
        statement = Statement(kind, i, end + 1)
        if kind == "untouched":
            return statement
        if kind == "plain":
            self._add("drop", (self._start(i), self._end(end), ";"))
        self._expression(i, end, kind)
        return statement

    def _kind(self, i, end):
        word = self.words[i]
        if word in UNTOUCHED:
            return "untouched"
        if word in ("return", "break", "continue", "goto"):
            return "return" if word == "return" else "jump"
        if word in TYPES or re.fullmatch(r"u?int\d+_t", word):
            return "declaration"
        if end > i + 1 and re.fullmatch(r"\w+", self.words[i + 1]) and re.fullmatch(r"\w+", word):
            return "declaration"
        return "plain"

    # ---- Expressions

    def _condition(self, first, end):
        self._negate(first, end)
        self._operands(first, end)

    def _negate(self, first, end):
        self._add("negate", (self._start(first), self._start(first), "!("),
                  (self._end(end - 1), self._end(end - 1), ")"))

    def _operands(self, first, end):
        """Negates the operands of && and ||, also of those in brackets."""
        parts = []
        for outer in self._split(first, end, "||"):
            inner = self._split(*outer, "&&")
            parts += inner
        if len(parts) > 1:
            for part in parts:
                self._negate(*part)
        for part in parts:
            for i in range(*part):
                if self.words[i] == "(" and self._depth_of(part[0], i) == 0:
                    self._operands(i + 1, self.closing[i])

    def _expression(self, first, end, kind):
        words = self.words
        if kind == "return" and self.returns_bool and end - first > 1 and \
           not (end - first == 2 and words[first + 1] in ("true", "false")):
            self._condition(first + 1, end)
        for i in range(first, end):
            if words[i] == "?":
                start = i
                depth = 0
                while start > first:
                    before = words[start - 1]
                    depth += (before in CLOSING) - (before in OPENING)
                    if depth < 0 or (depth == 0 and before in ("=", "return", ",", "+=")):
                        break
                    start -= 1
                self._condition(start, i)
            elif words[i] in self.neighbours and words[i + 1] != "(":
                self._replace(i, self.neighbours[words[i]])
            elif words[i] in ("true", "false"):
                self._replace(i, "false" if words[i] == "true" else "true")
        if kind != "return":
            return
        if words[first + 1:end] == ["0"] and not self.returns_bool:
            self._replace(first + 1, "-EIO")
        elif words[first + 1:end] == ["OP_PARKED"]:
            self._replace(first + 1, "0")
        for i in range(first + 1, end - 1):
            if words[i] == "-" and re.fullmatch(r"E[A-Z]+", words[i + 1]):
                self._add("replace", (self._start(i), self._end(i + 1), "0"))

    # ---- Tokens

    def _start(self, i):
        return self.tokens[i].start()

    def _end(self, i):
        return self.tokens[i].end()

    def _depth_of(self, first, i):
        return sum((word in OPENING) - (word in CLOSING) for word in self.words[first:i])

    def _split(self, first, end, at):
        parts, start, i = [], first, first
        while i < end:
            if self.words[i] in OPENING:
                i = self.closing[i]
            elif self.words[i] == at:
                parts.append((start, i))
                start = i + 1
            i += 1
        return parts + [(start, end)]

    def _cut(self, statement):
        return self._start(statement.first), self._end(statement.end - 1)

    # ---- What is found

    def _replace(self, i, new):
        self._add("replace", (self._start(i), self._end(i), new))

    def _add(self, kind, *edits):
        if kind == "swap":
            (a, b), (c, d) = edits
            first, second = self.text[a:b], self.text[c:d]
            # As many lines as before.
            edits = ((a, b, second), (c, d, first))
        self.found.append((self.function, kind, edits))

    def mutants(self):
        """{name: (line, text)}, the names are the same wherever the lines stand."""
        result, seen, texts = {}, Counter(), set()
        for function, kind, edits in self.found:
            new = self.text
            for start, end, what in sorted(edits, reverse=True):
                # A statement of several lines leaves them empty.
                lost = self.text[start:end].count("\n") if kind in ("drop", "replace") else 0
                new = new[:start] + what + "\n" * lost + new[end:]
            if new in texts:
                continue
            texts.add(new)
            name = f"{function}: {kind} {self._said(kind, edits)}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" ({seen[name]})"
            result[name] = (self.text.count("\n", 0, edits[0][0]) + 1, new)
        return result

    def _said(self, kind, edits):
        def short(start, end):
            text = " ".join(re.sub(r"//[^\n]*", "", self.text[start:end]).split())
            return text if len(text) <= SHOWN else text[:SHOWN] + "…"

        if kind == "negate":
            return short(edits[0][0], edits[1][0])
        if kind == "swap":
            return f"{short(*edits[0][:2])} / {short(*edits[1][:2])}"
        text = short(*edits[0][:2])
        if kind == "drop":
            return text
        line = self.text[self.text.rfind("\n", 0, edits[0][0]) + 1:
                         self.text.find("\n", edits[0][1])].strip()
        return f"{text} by {edits[0][2]} in {line}"


def enumerators(texts):
    """{enumerator: its neighbour} of all enums in the texts."""
    result = {}
    for text in texts:
        text = re.sub(r"//[^\n]*", "", text)
        for body in re.findall(r"\benum(?:\s+\w+)?\s*\{([^}]*)\}", text):
            names = [name for name in re.findall(r"(?:^|,)\s*([A-Z]\w+)", body) if name]
            for i, name in enumerate(names):
                if len(names) > 1:
                    result[name] = names[i + 1] if i + 1 < len(names) else names[i - 1]
    return result
