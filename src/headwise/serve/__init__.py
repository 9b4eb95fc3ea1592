"""An HTTP service that ranks passages with the attention ranker (extra: `headwise[serve]`).

`shapes` what goes over the wire; `limits` what is refused, and how that is said; `connections` how many may be open, and idle for how long;
`cache` passages that were computed once; `work` the thread that owns the model; `metrics`; `app` puts them together; `run` serves the app until it
is told to stop.
"""
