"""One loop. New behaviour enters as a term, a step function or a callback."""
