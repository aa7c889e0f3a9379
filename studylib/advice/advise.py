"""Advice on a case from evidence: the ranking, its reasons, what is missing, what would change it.

A pure function: the same case and evidence give the same words. Every sentence carries the ids of
the records, forecasts, counts and prices that it rests on.

Not covered: gathering the evidence (studylib.commands.gather), the text for people
(studylib.advice.advice_text).
"""

from __future__ import annotations

from studylib.advice.advice_words import explain_options, say_answer
from studylib.advice.article_rule import apply_article
from studylib.advice.first_reasons import five_reasons
from studylib.advice.missing_evidence import name_missing
from studylib.advice.option import ArticleSays, Flip, Missing, Option, Sentence
from studylib.advice.rank_methods import rank_options
from studylib.advice.turning_points import find_flips
from studylib.planning.case import Case, Evidence
from studylib.schema.settings import Frozen


class Advice(Frozen):
    """The answer. `answer` is what people read first."""

    ranking: tuple[Option, ...]
    missing_evidence: tuple[Missing, ...]
    changes_if: tuple[Flip, ...]
    article_says: ArticleSays
    reasons: tuple[Sentence, ...]
    answer: Sentence

    @property
    def best(self) -> Option | None:
        first = self.ranking[0]
        return first if first.fits else None

    @property
    def sentences(self) -> list[Sentence]:
        """Every sentence with what it rests on."""
        said = [self.answer, *self.reasons, *(r for option in self.ranking for r in option.reasons)]
        said += [Sentence(text=m.what, evidence=m.evidence) for m in self.missing_evidence]
        said += [Sentence(text=f.sentence, evidence=f.evidence) for f in self.changes_if]
        article = self.article_says
        return [*said, Sentence(text=article.sentence, evidence=article.evidence)]


def advise(case: Case, evidence: Evidence) -> Advice:
    """Rank, explain, say what is missing, what would change it, and what the article says."""
    options = explain_options(case, evidence, rank_options(case, evidence))
    flips = find_flips(case, evidence, options)
    return Advice(
        ranking=options,
        missing_evidence=name_missing(case, evidence, options),
        changes_if=flips,
        article_says=apply_article(case, options),
        reasons=five_reasons(case, evidence, options, flips),
        answer=say_answer(case, options),
    )
