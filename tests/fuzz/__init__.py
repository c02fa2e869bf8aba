"""Random programs, run bare and observed: whatever differs for the user is a fault of ours."""
