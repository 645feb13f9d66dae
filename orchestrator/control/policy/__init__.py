"""The scheduler of a server's queue: `decide.decide` turns `QueueFacts` into a `Decision`. Pure: no clock, no
randomness, no input or output; the ticker loads the facts and carries out the decision.

**One matrix.** `capacity_profile` holds what is free by resource, node and column of time: now, after releases under
way (`HANDOVER_S`), at the end of each run, and after everything whose end is not known. Runs are vectors over the
resources that somebody asks for (`worker_shapes`); whether and where a gang fits at some time is a minimum over
columns, and `gang_places` chooses nodes out of it. With more than `MOST_COLUMNS` ends, ends are rounded up, which is
on the safe side.

**One pass**, in the order of `admission_order`: runs within the quota of their queue, then by priority, fair share
and submission. Each run of the first `RESERVATION_DEPTH`

1. starts, if it fits now until its end beside all reservations so far; else
2. has elastic runs shrink, if it fits with their extras (`making_room`); else
3. has runs of lower priority suspended, or, within its quota, those that borrowed; else
4. gets or keeps a reservation (`kept_reservations`).

Runs after these start only if they fit now, their run time is known, and no reservation is delayed. A run whose run
time is not known holds its places in all columns, so it starts only where nothing is reserved. What is idle then goes
to elastic runs (`elastic_growth`).

**Elastic runs** hold their minimum until they would end with it: the latest end that is possible, so that shrinking
them delays no reservation. Everything beyond (`extras`) counts as free from the second column on for runs that may
take it: those of equal or higher priority, or owners of borrowed quota. They may therefore grow onto places that are
reserved for such runs later, and return them in time.

**What is promised is kept.** The reservations of the decision before come back as `ScheduledRun.reserved`. Only runs of
higher priority or within their quota, lost nodes, and runs that take longer than was known move them.

**Nothing is decided twice.** What was asked of a driver and is not done yet is free in the second column, and a run
that is to start there waits for it. Runs grow only `GROWTH_PAUSE_S` after their last change.

Order within the pass, and so who wins: `displaced_runs` (nodes gone), then waiting runs, then growth.
"""
