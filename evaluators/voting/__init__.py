"""Parts of `arc@ARC`: decoded grids, the tasks of a data set, votes, scores and files."""
