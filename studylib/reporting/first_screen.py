"""The first screen, the same in README, REPORT.md, report.html and the report notebook.

Three sentences of advice, the article's table beside ours, one picture that decides, and what was
not done. The toys are told what they are where they speak.

Not covered: the sentences (studylib.reporting.team_advice), the table (article_table), the picture
(decision).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.reporting import decision
from studylib.reporting.appendix_files import link_to
from studylib.reporting.article import read_article
from studylib.reporting.article_table import article_table
from studylib.reporting.blocks import Block, Heading, Items, Picture, Text, paragraph
from studylib.reporting.claims import Finding
from studylib.reporting.evidence_kinds import kind_of_model, parameter_count
from studylib.reporting.glossary import WORDS_LINK, say
from studylib.reporting.notes import join_words
from studylib.reporting.summary import Summary
from studylib.reporting.team_advice import advise_teams

TITLE = "PEFT or full fine-tuning?"


def first_screen(
    studies: Sequence[Summary], findings: Sequence[Finding], picture: str | None
) -> list[Block]:
    """Title, heading, then all of it. picture: the path of the picture that decides, if drawn."""
    article = read_article()
    said = advise_teams(studies, findings)
    blocks: list[Block] = [Heading(1, TITLE), Heading(2, "The answer")]
    blocks += [Items((said.small, said.deep, said.memory), numbered=True)]
    blocks += paragraph(said.not_done)
    if findings:
        blocks += [
            Heading(3, "The article's claims, checked"),
            Text(f"[{article['title']}]({article['address']}) ({article['publisher']}) says: "
                 f"*{article['rule']}*"),
            article_table(findings),
            Text(f"Each verdict leads to [its evidence]({link_to('claims')}). "
                 f"[What the words mean]({WORDS_LINK})."),
        ]  # fmt: skip
    if picture is not None:
        blocks += [Picture(decision.CAPTION, picture)]
    return blocks + paragraph(tell_toys(studies))


def tell_toys(studies: Sequence[Summary]) -> str:
    """What the toy models are, where any is spoken of."""
    sizes = sorted({
        (c.total_params or 0, c.model)
        for s in studies for c in s.comparisons if kind_of_model(c.model) == "toy"
    })  # fmt: skip
    if not sizes:
        return ""
    names = join_words([f"`{model}` ({parameter_count(size)} parameters)" for size, model in sizes])
    return say("toys", names=names)
