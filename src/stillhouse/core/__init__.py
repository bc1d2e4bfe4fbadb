"""What everything else stands on: types, results, configuration, run folders, errors."""
