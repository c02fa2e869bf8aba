"""What gradscope costs, as ratios that are each measured within one run."""
