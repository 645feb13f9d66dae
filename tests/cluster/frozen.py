"""Imported last by the server that test processes are forked from: what was imported before it is garbage never.

DeepSpeed collects garbage several times for each engine. With all modules to look through, an engine of a tiny model
takes 0.24 s; without them it takes 0.02 s.
"""

import gc

gc.collect()
gc.freeze()
