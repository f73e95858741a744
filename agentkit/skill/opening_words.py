"""Words that a sentence of a report begins with and that are nobody's name."""

from __future__ import annotations

import re

OPENING_WORDS: list[str] = re.findall(
    r"\S+",
    """
    A After All Also An Any As At Because Before Both By Each Either Every For From He However
    If In It Its Many Most Neither No Nobody None Nothing On Once One Only Or Other Our She
    Some Such That The Their There These They This Those To Under Unless Until We What When
    Where Whether Which While Who Whoever With Without You Your

    Access Accessibility Accessing Accounts Advertisers Advertising Agreements Allows Amounts
    Announcements Anybody Anyone Arbitration Assigning Assignment Attorneys Audits Automatic
    Backups Banned Bills Blocking Breaches Browsing Buyers Cancelling Changes Charges Children
    Claims Clauses Clients Collected Collecting Companies Compensation Competing Complaints
    Conditions Confidential Confidentiality Consent Contacting Content Contracts Cookies Copies
    Copying Copyright Costs Courts Customers Damage Damages Data Deadlines Deleted Deleting
    Delivery Deposits Details Disclosing Disclosure Disputes Documents Duties Employees Ending
    Enforcing Everybody Everyone Everything Existing Expenses Expired Failing Failure False
    Features Fees Few Fines First Free Further Gives Goods Governing Grants Harm Harmful
    Headings Identifying Illegal Inactive Includes Including Indemnity Individuals Information
    Injured Interest Invalidity Invoices Involves Keeping Lacks Late Later Law Laws
    Lawsuits Lawyers Legal Less Liability Licences Licensees Licenses Limits Links Logs Losses
    Lost Major Makes Materials Members Messages Minors Missing Money Moral More Must Names
    Negotiations New Notices Notifications Obligations Offers Old Orders Others Owners
    Ownership Paid Parents Parties Partners Parts Passwords Payment Payments People Per
    Permission Personal Places Posting Prices Privacy Private Products Prohibits Promises
    Promoting Property Protects Provides Providing Public Publishing Purchases Reading Reasons
    Records Recruiting Refunds Registering Rejected Remedies Removing Renewal Reports Requests
    Requires Rights Rules Sales Scraping Searching Security Sellers Selling Sensitive Service
    Services Several Sharing Signing Software Someone Something Spidering Staff Statements
    Stored Storing Subscriptions Suppliers Suspended Suspension Taxes Termination Terms Third
    Time Tracking Trademarks Transferring Transfers Two Unauthorised Unauthorized Unclear
    Unpaid Unused Updates Uploading Use User Usernames Users Using Vague Very Videos Violations
    Visitors Waiting Waivers Warranties Warranty Websites Works Writing Written
    """,
)
"""With their first letter large: those of grammar, then of what documents are about."""
