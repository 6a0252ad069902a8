"""What several front processes give: requests over TCP and by shared memory, with 1, 2, 4 and 8 fronts."""
