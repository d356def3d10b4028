"""What the studies share: arms and their runs, statistics over seeds, the rounds of MACPO, runs at the same time."""
