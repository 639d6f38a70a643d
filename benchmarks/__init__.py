"""What is timed: prefopt beside its peers, on the same machine, model, pairs and order, each workload in one run.

    make bench                                    on made data, in an environment that has TRL too
    python -m benchmarks --data pairs.jsonl.gz    on a preference file of your own
    python -m benchmarks.growth                   how cost grows with the work

Every measurement is a process of its own, so that its peak memory is its own; schemes take turns, so
that a machine that slows down slows all of them. ``results.json`` holds what was measured, and
``RESULTS.md`` is written from it: no figure is typed by hand.
"""

TRL_AT_ONCE = 8
"""pairs; its per_device_train_batch_size, left alone"""
