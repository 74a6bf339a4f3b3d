"""What a person can do to the commands: each ends in one line, and loses nothing."""
