"""Flow inside masks from point trackers that the user installs: CoTracker, AllTracker."""
