"""The official way to find the needle again in the tokenised prompt, written from the method card (section 4)."""


def official_span(prompt_ids, needle_ids):
    """First window of the needle's length whose set of ids covers over 90 % of the needle's distinct ids; (-1, -1) if none."""
    wanted, length = set(needle_ids), len(needle_ids)
    for start in range(len(prompt_ids)):
        found = set(prompt_ids[start : start + length])
        if len(found & wanted) / len(wanted) > 0.9:
            return start, start + length
    return -1, -1
