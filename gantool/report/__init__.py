"""Pictures and pages made from run directories. Only this package knows matplotlib."""
