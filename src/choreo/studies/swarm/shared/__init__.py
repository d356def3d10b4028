"""What the SWARM studies share: their answers and runs on disk, the verdicts on their claims, and their pages."""
