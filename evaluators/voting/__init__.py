"""What `arc@ARC` is made of: decoded grids, the tasks of a data set, votes, and the scores and files made of them."""
