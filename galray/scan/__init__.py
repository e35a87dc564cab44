"""Score a survey, rank the candidates, and take an astronomer's grades."""
