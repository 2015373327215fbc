# SPDX-License-Identifier: Apache-2.0
"""Text for the tokenizer tests: a small training corpus in many scripts and a seeded string generator.

The corpus was written for this project (plain sentences about water, pipes and libraries), so it carries
no other licence. `sample_strings` yields hand-picked edge cases first (white space, contractions, combining
marks, emoji joined by U+200D, characters on which regular expression engines disagree), then random mixtures.
No string holds a surrogate; U+0000 is left to a test of its own.
"""

from __future__ import annotations

import random
import unicodedata

CORPUS: dict[str, str] = {
    "english": """A penstock is the pipe that carries water from the reservoir to the turbine. The water falls, the wheel
turns, and the lamp in the village is lit. They're sure it'll work; we've seen that it doesn't leak, and I'm told
that she'd have said so. Don't open the valve before the gauge reads 1200 or 3,450.75 units! "Who said that?" asked
the engineer. The children's boats weren't lost: 12 of 345 came back, 6789 did not. In 1999, in 2024, at 10:45,
there were 7 gates, 70 gates, 700 gates. What is larger than memory must be streamed from the drive; what is
streamed must be read in order; what is read in order is read at the speed of the drive. The quick brown fox jumps
over the lazy dog, again and again and again. THE QUICK BROWN FOX. YOU'RE RIGHT, IT'S LATE, WE'LL GO.""",
    "french": """L'eau coule dans la conduite forcée; l'été, elle manque, et l'hiver elle gèle. Où est la clé du garçon ?
« Là-bas », répondit-il, près de la forêt où naît la rivière. Ça ne fait rien, c'était déjà l'aube.""",
    "german": """Das Wasser fällt durch die Röhre, und das Rad dreht sich. Die Straße führt über die große Brücke; wer
müde ist, schläft schön. Übermäßige Größe heißt: zu groß für den Speicher. Öl, Äpfel und Übung.""",
    "spanish": """¿Dónde está el agua? ¡Aquí está! El niño mañana irá a la montaña con su compañero; volverá después.""",
    "vietnamese": """Nước chảy qua đường ống đến tuabin. Người kỹ sư mở cửa cống và ngọn đèn trong làng được thắp sáng.""",
    "turkish": """Su borudan akar, türbin döner. İstanbul'da ışık yandı; çocuğun gözleri güldü, ığdır şehri uzakta.""",
    "polish": """Woda płynie rurą do turbiny. Zażółć gęślą jaźń. Łódź stoi przy moście, a źródło jest wśród gór.""",
    "russian": """Вода течёт по трубе к турбине, колесо вращается, и в деревне загорается свет. Инженер открыл задвижку;
вода пошла быстрее, чем ожидали. Что больше памяти, то читается с диска по порядку. Съешь ещё этих мягких булок.""",
    "ukrainian": """Вода тече трубою до турбіни. Її шлях довгий, але ґрунт твердий і є світло.""",
    "greek": """Το νερό κυλά μέσα από τον αγωγό προς τον στρόβιλο. Ο τροχός γυρίζει και το φως ανάβει στο χωριό. Ποιός
είπε ότι η μνήμη αρκεί; Ό,τι είναι μεγαλύτερο από τη μνήμη διαβάζεται από τον δίσκο.""",
    "hebrew": """המים זורמים בצינור אל הטורבינה. הגלגל מסתובב והאור נדלק בכפר. מי אמר שהזיכרון מספיק?""",
    "arabic": """الماء يجري في الأنبوب إلى التوربين. تدور العجلة ويضيء المصباح في القرية. ما هو أكبر من الذاكرة يُقرأ من
القرص بالترتيب، ١٢٣٤ و٥٦٧. كِتَابٌ جَمِيلٌ.""",
    "persian": """آب در لوله می‌رود و چرخ می‌گردد؛ چراغ ده روشن می‌شود. ۱۲۳ گچ پژ.""",
    "hindi": """पानी नली से होकर टरबाइन तक जाता है। पहिया घूमता है और गाँव में दीपक जलता है। जो स्मृति से बड़ा है वह डिस्क
से पढ़ा जाता है। १२३४ किताबें।""",
    "bengali": """জল নল দিয়ে টারবাইনে যায়। চাকা ঘোরে এবং গ্রামে আলো জ্বলে। ১২৩৪।""",
    "tamil": """தண்ணீர் குழாய் வழியாக விசையாழிக்குச் செல்கிறது. சக்கரம் சுழல்கிறது.""",
    "thai": """น้ำไหลผ่านท่อไปยังกังหัน ล้อหมุน และไฟในหมู่บ้านก็สว่าง สิ่งที่ใหญ่กว่าหน่วยความจำจะถูกอ่านจากดิสก์ ๑๒๓""",
    "korean": """물은 관을 통해 터빈으로 흐른다. 바퀴가 돌고 마을에 불이 켜진다. 기억보다 큰 것은 디스크에서 읽는다.""",
    "japanese": """水は管を通ってタービンへ流れる。車輪が回り、村に明かりがともる。メモリより大きいものはディスクから順に読む。
「誰がそう言ったの？」と技師は尋ねた。カタカナとひらがな、そして漢字。１２３ＡＢＣ。""",
    "chinese": """水从水库经过压力管道流向水轮机。轮子转动，村里的灯亮了。比内存大的东西要从磁盘上按顺序读取。“谁说的？”工程师问道。
三百四十五个孩子回来了，一九九九年，二〇二四年。繁體字：電燈、龍、鐵、讀寫、機器。""",
    "georgian": """წყალი მილით მიედინება ტურბინისკენ და სოფელში სინათლე ენთება.""",
    "amharic": """ውሃ በቧንቧ ወደ ተርባይን ይፈስሳል።""",
    "emoji": """😀 😃 😄 👍 👍🏽 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇯🇵 ❤️ ☕ ✅ 1️⃣ 🤷🏾‍♀️ 😀😀😀 👍👍 🎉🎉""",
    "math": """∑ᵢ xᵢ² ≤ ½ · √n − ∞, α → β ⇒ γ; a ≠ b, 10⁻⁶ ± 3 µm, 25 °C, 100 % € £ ¥ © ® ™ … – — • № ½ ¾ Ⅷ ② 𝒳 𝔸""",
    "code": """int main(int argc, char **argv) {
    for (size_t i = 0; i < n; i++) {
        if (a[i] != b[i] && !flag) return -1;   /* differs */
    }
\treturn 0;
}

def read(path: str, offset: int = 0) -> bytes:
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read()

#include <stdio.h>
x = {'a': 1, "b": [2, 3.5e-7, 0x1F]};  // comment
SELECT * FROM pipes WHERE id >= 10 AND name LIKE '%water%';
<a href="https://example.org/path?q=1&r=2#frag">link</a>
\t\tdeep\n\n\n        spaces    and\ttabs   \r\nwindows line\r\n""",
}

# Strings on which implementations have been seen to differ, or easily might.
# fmt: off
EDGE_STRINGS: list[str] = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", " \n", "\n ", " \n ", "  \n\n  ",
    "\t\t\n", "a", " a", "a ", " a ", "  a", "a  ", "a  b", "a   b", "a\nb", "a\n\nb", "a \n b", "a\r\nb",
    "a\tb", "   leading", "trailing   ", "Hello, world!", "hello world", "Hello  world", " Hello", "HELLO",
    "Hello\n", "\nHello", "The water falls.", "I'm you're he's she'd we'll they've don't",
    "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T", "it'ſ", "'s", "'S", "''s", "'sx", "' s", "x's's",
    "’s it’s", "rock 'n' roll", "O'Reilly's", "'tis", "'ll", "a'lla", "'re'RE'rE", "'\u212a", "can'T", "0",
    "1", "12", "123", "1234", "12345", "123456", "1234567890", "3.14159", "1,000,000", "-42", "1e-10",
    "0x1F", "10:45", "a1b2c3", "1a", "a1", "v1.2.3", "٣٤٥٦", "१२३४५", "１２３４５", "½¾Ⅷ②", "x²y³", "10⁻⁶",
    "1 2  3   4", "2024-01-31T12:00", "...", "…", "!!!", "?!?!", "--", "---", "===", "->", "=>", "!=", "<=",
    ";;", "((()))", "[[]]", "{}", "a.b.c", "a,b", "$100", "#tag", "@user", "50%", "a/b", "a\\b",
    "\"quoted\"", "`code`", "*bold*", "_under_", "a_b_c", "__init__", "..\n", "!\n\n", " .", " ...",
    ".\n\n", ") {\n", "};\n\n", "a.\r\n", "//\n", "?\r\r", "!\u2028", "  !\n ",
    "for (i = 0; i < n; i++) {\n    x += i;\n}\n", "\tif x:\n\t\treturn\n",
    "def f(x):\n    return x * 2\n\n\n", "#include <a.h>\n", "https://example.org/path?q=1&r=2#frag",
    "user@example.org", "C:\\dir\\file.txt", "/usr/lib", "<b>x</b>", "a&amp;b", "é", "e\u0301", "É",
    "E\u0301", "cafe\u0301", "café", "n\u0303", "o\u0302\u0323", "o\u0323\u0302", "ộ", "A\u030a", "Å", "Å",
    "q\u0307\u0323", "\u1e9b\u0323", "ﬁ", "Ω", "Ω", "가", "\u1100\u1161", "\u1100\u1161\u11a8", "각",
    "क\u093c", "\u0958", "\u0301", " \u0301", "a\u0301\u0301\u0301", "x\u0300\u0301\u0302", "\u0344",
    "\u2126", "\u212b", "\uf900", "\ufb1d", "\U0002f800", "naïve façade Zürich", "Straße GROẞE",
    "İstanbul ığdır", "Ελληνικά ΚΕΊΜΕΝΟ", "Привет, мир!", "Вода течёт 123", "ё", "е\u0308", "你好，世界！",
    "水从水库流向水轮机", "日本語のテキスト", "カタカナ ﾊﾝｶｸ", "한국어 텍스트", "ไทย ภาษา", "नमस्ते दुनिया", "বাংলা", "தமிழ்",
    "مرحبا بالعالم", "كِتَابٌ", "می‌رود", "שלום עולם", "שָׁלוֹם", "ქართული", "አማርኛ", "Việt Nam",
    "\u202eabc\u202c", "a\u200fb", "中文English混合123", "日本語 and English", "Привет world 你好", "x中y文z",
    "水 water 水", "a。b，c", "「引用」", "（括弧）", "😀", "😀😀", " 😀", "😀 ", "a😀b", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈",
    "🇩🇪🇯🇵", "❤️", "❤", "1️⃣", "🤷🏾‍♀️", "☕\ufe0e", "😀\n😀", "\u200b", "a\u200bb", "\u200d", "\ufeff",
    "\ufeffabc", "\u00a0", "a\u00a0b", "\u00a0\u00a0a", "\u2003x", "\u3000全角", "a\u3000b", "\u0085",
    "a\u0085b", "\u2028", "\u2029", "a\u2028b", "\u180e", "a\u180eb", "\u1680x", "\u202f1", "\u205f",
    "\u001c", "a\u001cb", "\u001d\u001e\u001f", "\x0b", "a\x0bb", "\x0c", "a\x0cb", "\x01", "\x7f",
    "\x1b[0m", "\x08", "\u0080", "\u009f", "\u00ad", "a\u00adb", "\ufffd", "\ufffe", "\uffff", "\ue000",
    "\U000f0000", "\U0010ffff", "\U00010000", "𝒳𝔸", "𐍈", "𓀀", "\U000e0001", "\U0001f9ff", "\u0378",
    "\u0e3f", "€£¥", "±×÷", "∑∞√", "←→", "░▒▓", "♠♥", "№5", "ªº", "ⓐⓑ", "ⅷ", "ʰʲ", "ǅ", "ᾼ", "ꭰ", "ჰ",
    "\u1c90", "ⴀ", "▁", "▁a", "a▁b", " ▁ ", "▁▁", "Ġ", "Ġa", "Ċ", "<0x41>", "<0x0A>", "<0xE6>", "<unk>",
    "<|endoftext|", "|>", "<|", "<s", "s>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ababababababababab", "          x", "\n\n\n\n\n\n\n\nx", "x                ", "the the the the the",
    "again and again and again", "WATERwaterWater", "camelCaseString", "snake_case_string", "penstock",
    " penstock turbine reservoir", "Penstock's", "antidisestablishmentarianism", "zzzzqqqqxxxx",
    "\t\t  \t x", " \t\n\r x \r\n\t ",
]
# fmt: on

# fmt: off
_BLOCKS: list[tuple[int, int]] = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F),
    (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F),
    (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF), (0xD00, 0xD7F), (0xE00, 0xE7F),
    (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F),
    (0x13A0, 0x13FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x214F), (0x2150, 0x218F),
    (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x25FF), (0x2600, 0x27BF),
    (0x2C00, 0x2C5F), (0x3000, 0x303F), (0x3040, 0x309F), (0x30A0, 0x30FF), (0x3130, 0x318F),
    (0x4E00, 0x9FFF), (0xA000, 0xA48F), (0xA640, 0xA69F), (0xAB70, 0xABBF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F), (0xFE70, 0xFEFE), (0xFF00, 0xFFEF),
    (0x10330, 0x1034F), (0x12000, 0x120FF), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F5FF),
    (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x200FF), (0x2F800, 0x2F8FF),
]
# fmt: on
_SPACES = [
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u0085",
    "\u2028",
    "\x0b",
    "\x0c",
]
_SUFFIXES = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", "'x"]
_PUNCT = list(".,;:!?-_()[]{}<>\"'`~@#$%^&*+=/\\|") + [
    "...",
    "--",
    "->",
    "::",
    "//",
    "!=",
    "«",
    "»",
    "。",
    "、",
    "，",
    "…",
    "—",
]


def corpus_lines() -> list[str]:
    """The corpus as training lines: each script's lines several times, so that merges of whole words form."""
    lines: list[str] = []
    for name, text in CORPUS.items():
        repeat = 4 if name in ("english", "code") else 2
        lines.extend(text.split("\n") * repeat)
        lines.extend(s + "\n" for s in text.split("\n"))
    return lines


def _random_char(rng: random.Random) -> str:
    """A character of a random block, assigned in this Unicode version: newer tables must not decide a test."""
    while True:
        low, high = rng.choice(_BLOCKS)
        char = chr(rng.randint(low, high))
        if unicodedata.category(char) not in ("Cn", "Cs"):
            return char


def random_string(rng: random.Random, words: list[str], specials: list[str], pieces: int) -> str:
    """A mixture of corpus words, random characters, digits, punctuation, white space and special tokens."""
    out: list[str] = []
    for _ in range(pieces):
        kind = rng.randrange(16)
        if kind < 5:
            out.append(rng.choice(words))
        elif kind < 8:
            out.append(rng.choice(_SPACES))
        elif kind == 8:
            out.append(rng.choice(words) + rng.choice(_SUFFIXES))
        elif kind == 9:
            out.append(str(rng.randrange(10 ** rng.randint(1, 9))))
        elif kind == 10:
            out.append(rng.choice(_PUNCT) * rng.choice([1, 1, 1, 2, 3]))
        elif kind == 11:
            out.append("".join(_random_char(rng) for _ in range(rng.randint(1, 4))))
        elif kind == 12:
            out.append(unicodedata.normalize("NFD", rng.choice(words)))
        elif kind == 13:
            out.append(
                rng.choice([" " * rng.randint(1, 20), "\n" * rng.randint(1, 5), rng.choice(words).upper()])
            )
        elif kind == 14 and specials:
            out.append(
                rng.choice(["", " ", "  ", "\n"]) + rng.choice(specials) + rng.choice(["", " ", "  ", "\n"])
            )
        else:
            out.append(" " + rng.choice(words))
    return "".join(out)


def corpus_words() -> list[str]:
    """The distinct white-space-separated words of the corpus, in order of appearance."""
    return list(dict.fromkeys(word for text in CORPUS.values() for word in text.split()))


def random_strings(seed: int, count: int, specials: list[str], longest: int = 12) -> list[str]:
    """`count` random strings of 1 to `longest` pieces; the same for the same arguments."""
    rng = random.Random(seed)
    words = corpus_words()
    return [random_string(rng, words, specials, rng.randint(1, longest)) for _ in range(count)]


def special_strings(specials: list[str]) -> list[str]:
    """Every special or added token alone, beside text, beside white space, doubled and cut short."""
    out: list[str] = []
    for token in specials:
        out += [
            token,
            token * 2,
            f"a{token}b",
            f"a {token} b",
            f"  {token}  ",
            f"{token} x",
            f"x\n{token}\ny",
            token[:-1],
            token + "s",
        ]
    return out
