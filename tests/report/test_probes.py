"""The report's part on what the reward model pays for: figures on the page, texts escaped, nothing where nothing."""

from __future__ import annotations

import json

from rlhf_gym.report.reward import edits_chart, probes_part
from rlhf_gym.training import probe_edits
from tests.training.test_probes import by_order, by_words, probe


def test_what_was_found_is_on_the_page() -> None:
    found = json.loads(json.dumps(probe(by_words, gold=by_order).to_dict()))
    page = probes_part(found)
    assert page.count('class="train"') >= 2 * len(found["edits"]) and 'class="best_of"' in page
    for sentence in found["suspicions"]:
        assert sentence.replace("r_φ", "r<sub>φ</sub>").replace("'", "&#x27;")[1:] in page
    for baseline in found["baselines"]:
        assert f"<td>{baseline['name']}</td>" in page and f"{baseline['accuracy']:.1%}" in page
    assert "good <small>+" in page and "bad <small>−" in page
    assert "raised by gold" in page


def test_without_gold_or_preferences_there_is_less_to_say() -> None:
    found = json.loads(json.dumps(probe(by_words).to_dict()))
    assert "raised by gold" not in probes_part(found) and "best_of" not in probes_part(found)
    bare = probes_part(found | {"baselines": [], "words_for": [], "words_against": [], "suspicions": []})
    assert "Nothing suspicious" in bare and "rewards that see little" not in bare
    assert probes_part(None) == "" and probes_part(found | {"edits": []}) == ""


def test_texts_are_escaped_and_points_are_in_the_picture() -> None:
    edits = [vars(e) | {"example": vars(e.example)} for e in probe_edits(by_words, ["p"] * 4, ["good <b> bad x"] * 4)]
    edits[0] |= {"suspicious": True, "name": "<i>"}
    page = probes_part({"edits": edits, "suspicions": ["<u>"], "baselines": [], "words_for": [], "words_against": []})
    assert "<b> bad" not in page and "&lt;b&gt;" in page and "<i>" not in page and "<u>" not in page
    edits[0] |= {"change": 0.0, "error": 0.0}
    assert "nan" not in edits_chart(edits[:1])
