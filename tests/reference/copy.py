"""Copy hits and scores by slow loops over plain lists."""


def slow_copy_hits(argmax, key_ids, emitted, needle, match="token"):
    """One head: argmax [T], emitted [T] -> list of bool."""
    start, stop = needle
    hits = []
    for step, (position, token) in enumerate(zip(argmax, emitted, strict=True)):
        hit = start <= position < stop and key_ids[position] == token
        if match == "position":
            hit = hit and position == start + step
        hits.append(hit)
    return hits


def slow_copy_score(argmax, key_ids, emitted, needle, rule="set", match="token"):
    """One head's score."""
    hits = slow_copy_hits(argmax, key_ids, emitted, needle, match)
    copied = [position for position, hit in zip(argmax, hits, strict=True) if hit]
    return len(set(copied) if rule == "set" else copied) / (needle[1] - needle[0])
