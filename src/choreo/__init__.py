"""choreo trains language-model agents to align each other."""
