"""The scoring store: results by content, over runs, jobs and output folders."""
