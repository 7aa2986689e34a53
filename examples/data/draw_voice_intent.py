"""Draws the rows of `voice_intent` from CLINC's training and validation rows, and parts them before any is read.

A row goes to the search by a hash of its input alone; the others certify. CLINC's rows are JSON Lines as
`{"id", "input", "meta": {"intent"}}`; its own test rows are not used.

    python examples/data/draw_voice_intent.py ../shared/data/clinc_train.jsonl ../shared/data/clinc_val.jsonl
"""

import hashlib
import json
import sys
from pathlib import Path

#: Skill of the assistant by CLINC's intent, chosen for what an assistant at home is asked, without a look at any read.
SKILLS = {
    "timer": "timer",
    "spelling": "spelling",
    "exchange_rate": "currency",
    "book_hotel": "hotel",
    "restaurant_reservation": "restaurant",
    "shopping_list_update": "shopping",
    "uber": "taxi",
    "calories": "calories",
}
#: Per cent of the rows that the wording is chosen on.
SEARCHED = 35


def digest(text: str) -> int:
    """Hash of an input: it orders the rows and parts them."""
    return int.from_bytes(hashlib.sha256(f"voice_intent {text}".encode()).digest()[:8])


def main() -> None:
    """Writes both parts beside this file."""
    here = Path(__file__).parent
    rows = {}
    for name in sys.argv[1:]:
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if (skill := SKILLS.get(row["meta"]["intent"])) is not None:
                rows.setdefault(row["input"], {"id": row["id"], "input": row["input"], "label": skill})
    ordered = sorted(rows.values(), key=lambda row: digest(row["input"]))
    for name, searched in (("voice_intent", False), ("voice_intent_searched", True)):
        part = [row for row in ordered if (digest(row["input"]) % 100 < SEARCHED) is searched]
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (here / f"{name}.jsonl").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
