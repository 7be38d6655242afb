"""Controllers: actions of the app on runs and configurations, without any widget."""
