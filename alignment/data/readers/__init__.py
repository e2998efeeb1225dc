r"""Preference files, saved data sets and the Hub -> rows.

| format | columns |
|---|---|
| ``pairs`` | ``prompt``, ``chosen``, ``rejected``: strings, or conversations that may hold the prompt |
| ``implicit`` | ``chosen``, ``rejected``: strings that begin with the same prompt |
| ``hh`` | ``chosen``, ``rejected``: transcripts of ``"\n\nHuman:"`` and ``"\n\nAssistant:"`` turns |
| ``labelled`` | ``prompt``, two ``responses``, ``label``: which one wins, for one or several annotators |
| ``ranked`` | ``prompt``, ``responses``: strings, or objects that hold one; best first, or with ``ranks`` |
| ``scored`` | ``prompt``, ``responses``, ``scores`` of one or several oracles, also inside the response objects |
| ``unpaired`` | ``prompt``, ``completion``, ``label``: whether it is good |
| ``completions`` | ``prompt``, ``completion``; or one conversation that ends with the assistant |
| ``prompts`` | one of ``prompt``, ``instruction``, ``conversations``, ``messages``, ``turns`` |

Optional in all: ``weight``, ``annotator``, ``group``. Optional in ``pairs``, ``implicit`` and ``hh``: ``preference``,
the probability that chosen beats rejected. Turns are objects with ``role`` and ``content``, or ``from`` and ``value``.

Verdicts between named systems, with or without the texts, are read by :func:`read_battles`.

A file that cannot be understood is an error that names the file and the row. A row that can be understood and holds no
preference (an empty reply, two equal replies, replies to different prompts) is left out and counted.
"""

from alignment.data.readers.battles import Battle, read_battles
from alignment.data.readers.lists import rank_scores
from alignment.data.readers.read import ReadResult, read_rows

__all__ = ["Battle", "ReadResult", "rank_scores", "read_battles", "read_rows"]
