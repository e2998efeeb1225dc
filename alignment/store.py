"""Log-probs of frozen policies on the rows of a data set, on disk, found by the content of both.

One file holds one policy on one data set. Its name is a hash of the policy's weights and of all token ids, so another
model, tokenizer, chat template, length limit or row is another file. What is read is verified: a damaged file, or one
whose inside belongs to something else than its name says, is refused.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from alignment.anchors import AnchorSet
from alignment.cache import Entry, cache_folder, read_entry, write_entry
from alignment.data import EncodedRow, collate
from alignment.progress import Announce
from alignment.ranks import ALONE, Ranks

_FORMAT = "1"


def store_folder() -> Path:
    """Where log-probs are kept."""
    return cache_folder("logps")


def with_stored_anchors(
    rows: Sequence[EncodedRow],
    anchors: AnchorSet,
    *,
    folder: Path,
    batch_size: int,
    announce: Announce,
    ranks: Ranks = ALONE,
) -> tuple[EncodedRow, ...]:
    """The rows with the log-probs of every anchor: read where they are stored, else computed once and stored.

    Args:
        rows: encoded rows.
        anchors: the policies, as they are now.
        folder: of the store.
        batch_size: rows scored at once.
        announce: is told what was read and what was computed.
        ranks: the processes that share what is computed; each gets all of it.

    Raises:
        UserError: if a stored file is damaged or stale.
    """
    known: dict[str, tuple[EncodedRow, ...]] = {}
    result = tuple(rows)
    for name in anchors.names:
        policy = anchors.fingerprint(name)
        if policy not in known:
            known[policy] = _of_policy(result, anchors, name, policy, folder, batch_size, announce, ranks)
        result = tuple(
            replace(
                item,
                anchors={**item.anchors, name: scored.anchors[_OWN]},
                mismatched_anchors={**item.mismatched_anchors, name: scored.mismatched_anchors[_OWN]}
                if item.mismatched_ids
                else {},
            )
            for item, scored in zip(result, known[policy], strict=True)
        )
    return result


# Under which a policy's own log-probs stand before they get the names of the anchors that it serves as.
_OWN = "policy"


def _of_policy(
    rows: Sequence[EncodedRow],
    anchors: AnchorSet,
    name: str,
    policy: str,
    folder: Path,
    batch_size: int,
    announce: Announce,
    ranks: Ranks,
) -> tuple[EncodedRow, ...]:
    key = _key(rows, policy)
    path = folder / f"{key}.safetensors"
    # Each machine may have a folder of its own.
    if all(ranks.gather([(ranks.index, path.exists())])):
        values = read_entry(path, key, "log-probs").tensors["logps"]
        announce(f"log-probs of '{name}': {len(rows):,} rows read from {path}")
    else:
        values = _score(rows, anchors, name, batch_size, ranks)
        if ranks.is_first_of_machine:
            write_entry(path, key, Entry(tensors={"logps": values}, notes={}))
        announce(f"log-probs of '{name}': {len(rows):,} rows computed and stored in {path}")
    return _attach(rows, values)


def _key(rows: Sequence[EncodedRow], policy: str) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {policy}".encode())
    for item in rows:
        digest.update(repr((item.prompt_ids, item.completion_ids, item.mismatched_ids)).encode())
    return digest.hexdigest()


def _score(rows: Sequence[EncodedRow], anchors: AnchorSet, name: str, batch_size: int, ranks: Ranks) -> Tensor:
    """Log-probs of all completions of all rows one after the other, a row's mismatched completion after its own."""
    # Rows of similar length waste little on padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + max(map(len, rows[i].completion_ids)))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    own: list[tuple[int, Tensor]] = []
    for _, chunk in ranks.own(chunks):
        batch = collate([rows[i] for i in chunk], pad_token_id=0).to(anchors.device)
        logps_BG = anchors.score_one(name, batch.completions).float().cpu()
        strangers_B1 = None if batch.mismatched is None else anchors.score_one(name, batch.mismatched).float().cpu()
        for b, i in enumerate(chunk):
            logps = logps_BG[b, : len(rows[i].completion_ids)]
            own.append((i, logps if strangers_B1 is None else torch.cat([logps, strangers_B1[b]])))
    return torch.cat(ranks.gather(own))


def _attach(rows: Sequence[EncodedRow], values: Tensor) -> tuple[EncodedRow, ...]:
    flat, position, result = values.tolist(), 0, []
    for item in rows:
        own = tuple(flat[position : position + len(item.completion_ids)])
        position += len(own)
        stranger = {}
        if item.mismatched_ids:
            stranger = {_OWN: flat[position]}
            position += 1
        result.append(replace(item, anchors={_OWN: own}, mismatched_anchors=stranger))
    assert position == len(flat), "a store file has one number for each completion"
    return tuple(result)
