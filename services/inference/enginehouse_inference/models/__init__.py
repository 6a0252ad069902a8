"""What this process serves: versions of models, their states, statistics, and how they come and go."""
